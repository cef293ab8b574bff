// Grows the trees of rounds on a recording, one after the other; called by growing.py.
//
// The rule is that of grow() in env/tree/growth.py, with the candidates of MergedDraft in env/drafts/merged.py. Sums,
// products and the logarithms of lookup have the same bits here. NumPy's exp() and log() of arrays may differ from the C
// library's in the last bit. So thresholds come as logarithms, and where such a bit could decide, a round is left to NumPy.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off")
#else
#pragma STDC FP_CONTRACT OFF
#endif

namespace {

using Int = std::int64_t;
constexpr double NONE = -std::numeric_limits<double>::infinity();
constexpr double NEAR = 1e-9;  // numbers that NumPy computes otherwise differ by far less
constexpr Int LONGEST = 16, LATEST = 32;  // of LookupDraft
constexpr Int MOST = 64;  // candidates of a node

}  // namespace

extern "C" {

struct Recording {
    // Expansions of the draft: [rows, columns], [rows].
    const Int* tokens;
    const double *log_probs, *calibrated, *confidence, *entropy;
    const Int* child;
    Int columns, causal;
    // Texts, one behind the other: [tokens].
    const Int *text, *root_row, *begin, *end;
    // Pairs of tokens of each text in their order, and where each pair ends: [tokens].
    const std::uint64_t* pairs;
    const Int* pair_ends;
    const double* rates;  // probability of a match by its length, after each token, [tokens, LONGEST + 1]
};

struct Rule {
    Int base_depth, max_depth, min_branch, mid_branch, max_branch, frontier_width, node_budget, source, calibrated;
    double high, low;  // confidences
    // The smallest logarithms that pass: of a confidence over `high`, of one of `low`, of reaches and of a probability.
    double log_high, log_low, early_stop, deep_expand, min_reach, min_confidence;
    double max_entropy, min_level_reach;
};
}

namespace {

enum Source : Int { MODEL, LOOKUP, BOTH };

struct Candidate {
    Int token;
    double log_prob;
    bool lookup = false, rounded = false;  // rounded: NumPy's number may differ in the last bits
};

struct Node {
    Int token, parent, depth, row = -1;  // row: of the expansion by the model
    double log_prob, log_reach;
    bool lookup, rounded, right = false, kept = true;
};

class Growth {
public:
    explicit Growth(const Recording& recording) : data(recording) {}

    // Grows a tree and returns whether it is right for certain.
    bool run(const Rule& parameters, Int position, Int most) {
        rule = parameters, root = position, looked_up = 0;
        rule.max_depth = std::min(rule.max_depth, most);
        rule.base_depth = std::min(rule.base_depth, rule.max_depth);
        const Int width = std::max<Int>(rule.max_branch, rule.calibrated && data.calibrated ? 2 : 1);
        sure = rule.base_depth == 0 || rule.source == LOOKUP || width <= data.columns;
        nodes.clear();
        nodes.push_back({data.text[root], -1, 0, -1, 0.0, 0.0, false, false, true});
        level.assign(1, 0);
        for (Int depth = 0; rule.base_depth > 0 && sure && depth < rule.max_depth; ++depth) {
            if (depth > 0) choose_frontier(depth);
            if (level.empty()) break;
            next.clear();
            for (Int node : level) expand(node);
            level.swap(next);
        }
        keep_likeliest();
        return sure;
    }

    // The longest match at a token and the token that followed there, -1 without a match. See LookupDraft.at_root().
    Int match(Int position, Int& length) {
        root = position;
        Candidate matches[LATEST];
        const Int count = find_matches({data.text[root], -1, 0, -1, 0.0, 0.0, false, false}, matches);
        const auto longer = [](const Candidate& one, const Candidate& other) { return one.log_prob < other.log_prob; };
        const Candidate* best = std::max_element(matches, matches + count, longer);
        length = count ? static_cast<Int>(best->log_prob) : 0;
        return count ? best->token : -1;
    }

    // The facts of `Outcomes`, the rows of each level below the root, and nodes of lookup alone: drafted, accepted.
    void write(std::int32_t* facts, Int levels, std::int32_t* by_lookup) const {
        std::fill(facts, facts + 6 + levels, 0);
        by_lookup[0] = by_lookup[1] = 0;
        for (const Node& node : nodes) {
            if (node.row >= 0) ++(node.depth ? facts[5 + node.depth] : facts[3]);
            if (!node.kept || !node.depth) continue;
            ++facts[1];
            facts[2] = std::max(facts[2], static_cast<std::int32_t>(node.depth));
            by_lookup[0] += node.lookup;
            if (!node.right) continue;
            ++facts[0];
            facts[5] += data.causal && node.row >= 0;
            by_lookup[1] += node.lookup;
        }
        facts[4] = static_cast<std::int32_t>(looked_up);
    }

private:
    const Recording& data;
    Rule rule{};
    Int root = 0, looked_up = 0;
    bool sure = true;
    std::vector<Node> nodes;
    std::vector<Int> level, next;  // nodes of the deepest level that may be expanded, and their children that may

    bool at_least(double value, double bound, bool rounded) {
        if (rounded && std::fabs(value - bound) < NEAR) sure = false;
        return value >= bound;
    }

    // Whether the first node is before the second one by reach; of equal ones the earlier node is.
    bool likelier(Int one, Int other, bool by_exp) {
        const double difference = nodes[one].log_reach - nodes[other].log_reach;
        const bool open = nodes[one].rounded || nodes[other].rounded || (by_exp && difference != 0);
        if (open && std::fabs(difference) < NEAR) sure = false;
        return difference > 0 || (difference == 0 && one < other);
    }

    void choose_frontier(Int depth) {
        level.erase(std::remove_if(level.begin(), level.end(), [&](Int number) {
            const Node& node = nodes[number];
            return !at_least(node.log_reach, rule.early_stop, node.rounded) ||
                   (depth >= rule.base_depth && !at_least(node.log_reach, rule.deep_expand, node.rounded)) ||
                   !at_least(node.log_prob, rule.min_confidence, node.rounded);
        }), level.end());
        best(level, rule.frontier_width, true);
        if (rule.min_level_reach <= 0) return;
        double sum = 0;
        for (Int node : level) sum += std::exp(nodes[node].log_reach);
        if (!at_least(sum, rule.min_level_reach, true)) level.clear();
    }

    // Keeps so many of the likeliest nodes, in their order.
    void best(std::vector<Int>& some, Int count, bool by_exp) {
        if (static_cast<Int>(some.size()) <= count) return;
        std::sort(some.begin(), some.end(), [&](Int one, Int other) { return likelier(one, other, by_exp); });
        some.resize(count);
        std::sort(some.begin(), some.end());
    }

    void expand(Int number) {
        Candidate found[MOST];
        const Node node = nodes[number];  // a copy: adding nodes moves them
        double confidence = 0, entropy = 0, log_best = NONE;
        Int count = 0;
        if (rule.source != LOOKUP && !node.lookup) {
            const Int row = find_row(node);
            if (row < 0) {
                sure = false;
                return;
            }
            nodes[number].row = row;
            confidence = data.confidence[row], entropy = data.entropy[row];
            count = propose(row, found);
        }
        if (rule.source != MODEL) {
            Candidate lengths[LATEST], matches[LATEST];
            const Int matched = rate(lengths, find_matches(node, lengths), matches);
            if (matched) log_best = matches[0].log_prob;
            count = merge(found, count, matches, matched);
            ++looked_up;
        }
        const bool high = confidence > rule.high || log_best >= rule.log_high;
        const bool low = confidence < rule.low && log_best < rule.log_low;
        const Int children = low ? rule.max_branch : high ? rule.min_branch : rule.mid_branch;
        for (Int place = 0; place < std::min(count, children); ++place) {
            const Candidate& one = found[place];
            if (one.log_prob == NONE) continue;
            const bool rounded = node.rounded || one.rounded;
            const double log_reach = node.log_reach + one.log_prob;
            if (log_reach < -700) sure = false;  // below the numbers that thresholds were made for
            if (!at_least(log_reach, rule.min_reach, rounded)) continue;
            const Int depth = node.depth + 1, place_in_text = root + depth;
            const bool right = node.right && place_in_text < data.end[root] && data.text[place_in_text] == one.token;
            nodes.push_back({one.token, number, depth, -1, one.log_prob, log_reach, one.lookup, rounded, right});
            const bool stops = rule.max_entropy > 0 && entropy > rule.max_entropy && !one.lookup;
            if (!stops) next.push_back(static_cast<Int>(nodes.size()) - 1);
        }
    }

    Int find_row(const Node& node) const {
        if (node.parent < 0) return data.root_row[root];
        const Int above = nodes[node.parent].row * data.columns;
        Int rank = 0;
        while (rank < data.columns - 1 && data.tokens[above + rank] != node.token) ++rank;
        return data.tokens[above + rank] == node.token ? data.child[above + rank] : data.child[above];
    }

    // The model's candidates, best first.
    Int propose(Int row, Candidate* found) const {
        const double* values = rule.calibrated && data.calibrated ? data.calibrated : data.log_probs;
        for (Int rank = 0; rank < rule.max_branch; ++rank)
            insert(found, rank, {data.tokens[row * data.columns + rank], values[row * data.columns + rank]});
        return rule.max_branch;
    }

    static void insert(Candidate* sorted, Int count, Candidate one) {
        for (; count > 0 && sorted[count - 1].log_prob < one.log_prob; --count) sorted[count] = sorted[count - 1];
        sorted[count] = one;
    }

    // See merge() in env/drafts/merged.py; `found` holds the result.
    Int merge(Candidate* found, Int count, const Candidate* matches, Int matched) {
        Candidate all[MOST];
        Int size = 0;
        bool known[LATEST] = {};
        for (Int place = 0; place < count; ++place) {
            Candidate one = found[place];
            for (Int match = 0; match < matched && one.log_prob > NONE; ++match) {
                if (matches[match].token != one.token) continue;
                const double first = std::exp(one.log_prob), support = std::exp(matches[match].log_prob);
                one.log_prob = std::log(std::min(first + (1 - first) * support, 1.0));
                known[match] = one.rounded = true;
                break;
            }
            insert(all, size++, one);
        }
        for (Int match = 0; match < matched; ++match)
            if (!known[match]) insert(all, size++, matches[match]);
        for (Int place = 1; place < size; ++place)
            if ((all[place - 1].rounded || all[place].rounded) && all[place - 1].log_prob - all[place].log_prob < NEAR)
                sure = false;
        size = std::min(size, rule.max_branch);
        std::copy(all, all + size, found);
        return size;
    }

    // Tokens that followed earlier where the text and the node's path end now; `log_prob` is the length of the match.
    // See LookupDraft.after().
    Int find_matches(const Node& node, Candidate* matches) const {
        const Int first = data.begin[root], until = root + 1, taken = std::max(first, until - LONGEST);
        Int ending[2 * LONGEST], size = std::min(node.depth, LONGEST);
        Int place = size;
        for (const Node* one = &node; place > 0; one = &nodes[one->parent]) ending[LONGEST + --place] = one->token;
        const Int before = std::min(until - taken, LONGEST - size);
        for (Int back = 1; back <= before; ++back) ending[LONGEST - back] = data.text[until - back];
        const Int* last = ending + LONGEST + size - 1;
        size += before;
        if (size < 2) return 0;
        const std::uint64_t pair = static_cast<std::uint64_t>(last[-1]) << 32 | static_cast<std::uint64_t>(last[0]);
        const auto range = std::equal_range(data.pairs + first, data.pairs + data.end[root], pair);
        Int count = 0, seen = 0;
        for (const std::uint64_t* one = range.second; one-- != range.first && seen < LATEST;) {
            const Int end = data.pair_ends[one - data.pairs];
            if (end > until - 2) continue;  // nothing followed yet
            ++seen;
            note(matches, count, data.text[end + 1], [&] {
                Int length = 2;
                while (length < std::min(size, end - first + 1) && data.text[end - length] == last[-length]) ++length;
                return length;
            });
        }
        return count;
    }

    // Notes a match of a token. The first one of its longest matches counts, and stands where it was found.
    template <class Measure> static void note(Candidate* matches, Int& count, Int token, Measure measure) {
        Int known = 0;
        while (known < count && matches[known].token != token) ++known;
        if (known < count && matches[known].log_prob == LONGEST) return;
        const double length = static_cast<double>(measure());
        if (known < count) {
            if (length <= matches[known].log_prob) return;
            std::copy(matches + known + 1, matches + count--, matches + known);
        }
        matches[count++] = {token, length, true};
    }

    // Lookup's candidates, best first.
    Int rate(const Candidate* matches, Int count, Candidate* found) const {
        for (Int match = 0; match < count; ++match) insert(found, match, matches[match]);
        count = std::min(count, rule.max_branch);
        double left = 1, ceiling = 1, share = 1;
        for (Int place = 0; place < count; ++place) {
            const double rate = data.rates[root * (LONGEST + 1) + static_cast<Int>(found[place].log_prob)];
            ceiling = std::min(ceiling, left * share * rate);
            found[place].log_prob = std::log(ceiling);
            left -= ceiling, share /= 2;
        }
        return count;
    }

    void keep_likeliest() {
        if (static_cast<Int>(nodes.size()) <= rule.node_budget + 1) return;
        std::vector<Int> all(nodes.size());
        for (std::size_t number = 0; number < all.size(); ++number) all[number] = static_cast<Int>(number);
        best(all, rule.node_budget + 1, false);
        for (Node& node : nodes) node.kept = false;
        for (Int node : all) nodes[node].kept = true;
    }
};

}  // namespace

extern "C" {

// The outcomes of n rounds: of rule `choice[i]` at the token `roots[i]`, no deeper than `most[i]`. `sure` says which of
// them are right for certain; the others are left to NumPy.
void specgym_grow(const Recording* recording, const Rule* rules, const Int* choice, const Int* roots, const Int* most, Int n,
                  Int levels, std::int32_t* facts, std::int32_t* by_lookup, std::uint8_t* sure) {
    Growth growth(*recording);
    for (Int round = 0; round < n; ++round) {
        sure[round] = growth.run(rules[choice[round]], roots[round], most[round]);
        if (sure[round]) growth.write(facts + round * (6 + levels), levels, by_lookup + round * 2);
    }
}

// The longest match at each of n tokens, and the token that followed there. Uses the texts and their pairs alone.
void specgym_match(const Recording* recording, Int n, Int* lengths, Int* guesses) {
    Growth growth(*recording);
    for (Int position = 0; position < n; ++position) guesses[position] = growth.match(position, lengths[position]);
}
}
