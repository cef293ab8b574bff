// The parts of choosing a token that go over the whole vocabulary; called by choosing.py.
//
// Plain C++ that compilers turn into vector instructions: loops over lanes that do not depend on each other.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include <omp.h>

namespace {

constexpr std::int64_t LANES = 64;
constexpr std::int64_t BLOCK = 128;  // tokens whose noise is computed at once

std::uint32_t mix(std::uint32_t bits) {  // Wellons, "lowbias32"
    bits = (bits ^ bits >> 16) * 0x7FEB352Du;
    bits = (bits ^ bits >> 15) * 0x846CA68Bu;
    return bits ^ bits >> 16;
}

// The natural logarithm of a positive, normal number x = 2^e m, with m from sqrt(1/2) to sqrt(2), by the series of
// 2 artanh((m - 1) / (m + 1)). Even and odd terms have sums of their own, so neither waits for the other.
inline double logarithm(double x) {
    // AVX2 has no signed shifts and conversions of 64 bits. So `counted` is e + 1023, and is joined to the bits of 2^52.
    std::uint64_t bits;
    std::memcpy(&bits, &x, sizeof x);
    constexpr std::uint64_t ONE = 0x3FF0000000000000u, ROOT_OF_TWO = 0x3FF6A09E667F3BCDu;
    const std::uint64_t counted = (bits + (ONE + (std::uint64_t{1} << 52) - ROOT_OF_TWO)) >> 52;
    const std::uint64_t mantissa = bits + ONE - (counted << 52), joined = counted | 0x4330000000000000u;
    double m, power;
    std::memcpy(&m, &mantissa, sizeof m);
    std::memcpy(&power, &joined, sizeof power);
    const double s = (m - 1) / (m + 1), square = s * s, fourth = square * square;
    double even = 1.0 / 17, odd = 1.0 / 19;
    for (int place = 13; place > 0; place -= 4) even = even * fourth + 1.0 / place, odd = odd * fourth + 1.0 / (place + 2);
    return (power - (0x1p52 + 1023)) * 0.693147180559945309417 + 2 * s * (even + square * odd);
}

// Standard Gumbel noise of `count` tokens. The loops are separate, because compilers vectorise a loop badly that mixes
// lanes of 32 and of 64 bits.
void gumbel_of(std::uint32_t key, std::uint32_t second, std::int64_t first, std::int64_t count, float* noise) {
    double values[BLOCK];
    for (std::int64_t lane = 0; lane < count; ++lane) {
        const std::uint32_t bits = mix(mix(static_cast<std::uint32_t>(first + lane) ^ key) ^ second);
        // The middle of one of 2^32 cells of (0, 1); the lowest signed number has the first cell.
        values[lane] = (static_cast<double>(static_cast<std::int32_t>(bits)) + 2147483648.5) * 0x1p-32;
    }
    for (std::int64_t lane = 0; lane < count; ++lane) values[lane] = -logarithm(values[lane]);
    for (std::int64_t lane = 0; lane < count; ++lane) noise[lane] = static_cast<float>(-logarithm(values[lane]));
}

inline float value_of(float logit) { return logit; }
inline float value_of(std::uint16_t logit) {  // bfloat16
    const std::uint32_t bits = static_cast<std::uint32_t>(logit) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

struct Best {
    float value[LANES];
    std::int32_t token[LANES], has_nan[LANES];
};

// The best token of a row, the first one of equal scores; the value is NaN if the row has a NaN.
template <class Logit, bool NOISY>
void best_of_row(const Logit* logits, const float* noise, std::int64_t vocabulary, double* value, std::int64_t* token) {
    Best best;
    for (std::int64_t lane = 0; lane < LANES; ++lane)
        best.value[lane] = -std::numeric_limits<float>::infinity(), best.token[lane] = static_cast<std::int32_t>(lane),
        best.has_nan[lane] = 0;
    const std::int64_t whole = vocabulary / LANES * LANES;
    const auto compare = [&](std::int64_t first, std::int64_t lane) {
        const float plain = value_of(logits[first + lane]), now = NOISY ? plain + noise[first + lane] : plain;
        const bool more = now > best.value[lane];
        best.value[lane] = more ? now : best.value[lane];
        best.token[lane] = more ? static_cast<std::int32_t>(first + lane) : best.token[lane];
        best.has_nan[lane] |= now != now;
    };
    for (std::int64_t first = 0; first < whole; first += LANES)
        for (std::int64_t lane = 0; lane < LANES; ++lane) compare(first, lane);
    for (std::int64_t lane = 0; lane < vocabulary - whole; ++lane) compare(whole, lane);
    *value = best.value[0], *token = best.token[0];
    bool has_nan = false;
    for (std::int64_t lane = 0; lane < std::min(LANES, vocabulary); ++lane) {
        has_nan |= best.has_nan[lane] != 0;
        if (best.value[lane] > *value || (best.value[lane] == *value && best.token[lane] < *token))
            *value = best.value[lane], *token = best.token[lane];
    }
    if (has_nan) *value = std::numeric_limits<double>::quiet_NaN();
}

template <class Logit>
void best_of_rows(const Logit* logits, const float* const* noise, std::int64_t rows, std::int64_t vocabulary,
                  std::int64_t threads, double* values, std::int64_t* tokens) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows > 1)
    for (std::int64_t row = 0; row < rows; ++row) {
        const Logit* mine = logits + row * vocabulary;
        if (noise) best_of_row<Logit, true>(mine, noise[row], vocabulary, values + row, tokens + row);
        else best_of_row<Logit, false>(mine, nullptr, vocabulary, values + row, tokens + row);
    }
}

// exp(x) for x from -87 to 0, by a polynomial on [-log(2) / 2, log(2) / 2] (Cephes); NaN stays NaN.
inline float exponential(float x) {
    const float power = std::nearbyint(x * 1.44269504f);
    const float rest = x - power * 0.693359375f + power * 2.12194440e-4f;
    float sum = 1.9875691500e-4f;  // written out: compilers do not vectorise a loop in here
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    const std::int32_t bits = (static_cast<std::int32_t>(power) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return sum * scale;
}

// Sums over a row of exp(score - most), and with MOMENT also of exp(score - most) * (score - most).
struct Sums {
    double whole, moment;
};

template <bool MOMENT>
Sums sums_of(const float* scores, std::int64_t width, float most) {
    float sums[LANES] = {}, moments[LANES] = {}, below[LANES];
    const auto add = [&](const float* some, std::int64_t count) {
        // A separate loop, because compilers make branches of it otherwise. Impossible tokens add nothing.
        for (std::int64_t lane = 0; lane < count; ++lane) {
            const float value = some[lane] - most;
            below[lane] = value < -87.0f ? -87.0f : value;
        }
        for (std::int64_t lane = 0; lane < count; ++lane) {
            const float weight = exponential(below[lane]);
            sums[lane] += weight;
            if (MOMENT) moments[lane] += weight * below[lane];
        }
    };
    const std::int64_t whole = width / LANES * LANES;
    for (std::int64_t first = 0; first < whole; first += LANES) add(scores + first, LANES);
    add(scores + whole, width - whole);
    Sums result = {};
    for (std::int64_t lane = 0; lane < LANES; ++lane) result.whole += sums[lane], result.moment += moments[lane];
    return result;
}

// The entropy of the softmax of the scores [nats]: log(sum(exp)) minus the mean score, both relative to the highest.
float entropy_of(const float* scores, std::int64_t width) {
    float most = scores[0];
    for (std::int64_t number = 1; number < width; ++number) most = scores[number] > most ? scores[number] : most;
    const Sums sums = sums_of<true>(scores, width, most);
    return static_cast<float>(std::log(sums.whole) - sums.moment / sums.whole);
}

// The `count` best entries of a row, best first; equal scores stay in order.
void take_best(const float* scores, std::int64_t width, std::int64_t count, float* values, std::int64_t* numbers) {
    std::int64_t held = 0;
    for (std::int64_t first = 0; first < width; first += LANES) {
        const std::int64_t size = std::min(LANES, width - first);
        bool any = held < count;
        if (!any) {
            const float least = values[count - 1];
            int more = 0;
            for (std::int64_t lane = 0; lane < size; ++lane) more |= scores[first + lane] > least;
            any = more;
        }
        if (!any) continue;
        for (std::int64_t number = first; number < first + size; ++number) {
            if (held == count && !(scores[number] > values[count - 1])) continue;
            std::int64_t place = held < count ? held++ : count - 1;
            for (; place > 0 && values[place - 1] < scores[number]; --place)
                values[place] = values[place - 1], numbers[place] = numbers[place - 1];
            values[place] = scores[number], numbers[place] = number;
        }
    }
}

// The arguments of ranking that all rows share.
struct Ranking {
    const std::int64_t* tokens;  // whose noise each entry gets; null if entry n is token n
    std::int64_t width, count;
    float* values;
    std::int64_t* numbers;
    float* entropies;  // null if they are not computed
};

template <class Logit>
void rank_row(const Logit* logits, const float* noise, std::int64_t row, const Ranking& ranking, float* scores) {
    const auto [tokens, width, count, all_values, all_numbers, entropies] = ranking;
    float* values = all_values + row * count;
    const auto score = [&](auto more) {
        for (std::int64_t number = 0; number < width; ++number) scores[number] = value_of(logits[number]) + more(number);
    };
    if (entropies || !noise) score([](std::int64_t) { return 0.0f; });
    if (entropies) entropies[row] = entropy_of(scores, width);
    if (noise && !tokens) score([&](std::int64_t number) { return noise[number]; });
    if (noise && tokens) score([&](std::int64_t number) { return noise[tokens[number]]; });
    take_best(scores, width, count, values, all_numbers + row * count);
    const float whole = static_cast<float>(std::log(sums_of<false>(scores, width, values[0]).whole)) + values[0];
    for (std::int64_t place = 0; place < count; ++place) values[place] -= whole;
}

template <class Logit>
void rank_rows(const Logit* logits, const float* const* noise, std::int64_t rows, const Ranking& ranking, float* scores,
               std::int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows > 1)
    for (std::int64_t row = 0; row < rows; ++row)
        rank_row(logits + row * ranking.width, noise ? noise[row] : nullptr, row, ranking,
                 scores + omp_get_thread_num() * ranking.width);
}

// A log-probability as candidates have it: rounded to bfloat16, and then to half precision.
double rounded(float value) {
    if (value != value) return value;
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits = (bits + 0x7FFFu + (bits >> 16 & 1)) & 0xFFFF0000u;
    std::memcpy(&value, &bits, sizeof value);
    if (std::abs(value) >= 65520) return std::copysign(std::numeric_limits<double>::infinity(), value);
    // Numbers of normal size are exact in half precision.
    return std::abs(value) < 0x1p-14f ? std::nearbyint(value * 0x1p24) * 0x1p-24 : value;
}

}  // namespace

extern "C" {

// Standard Gumbel noise of every token, from two keys.
void specgym_gumbel(std::uint32_t key, std::uint32_t second, std::int64_t vocabulary, std::int64_t threads, float* noise) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (std::int64_t first = 0; first < vocabulary; first += BLOCK)
        gumbel_of(key, second, first, std::min(BLOCK, vocabulary - first), noise + first);
}

// The best token of each row and its score: the logit plus the row's noise, if any.
void specgym_best_bfloat16(const std::uint16_t* logits, const float* const* noise, std::int64_t rows,
                           std::int64_t vocabulary, std::int64_t threads, double* values, std::int64_t* tokens) {
    best_of_rows(logits, noise, rows, vocabulary, threads, values, tokens);
}

void specgym_best_float32(const float* logits, const float* const* noise, std::int64_t rows, std::int64_t vocabulary,
                          std::int64_t threads, double* values, std::int64_t* tokens) {
    best_of_rows(logits, noise, rows, vocabulary, threads, values, tokens);
}

// The `count` likeliest entries of each row, and their log-probabilities under the softmax of the scores. A score is the
// logit plus the row's noise for the entry's token, if any. Entropies are without noise. `scores` is working memory, one
// row for each thread.
void specgym_rank_bfloat16(const std::uint16_t* logits, const float* const* noise, const std::int64_t* tokens,
                           std::int64_t rows, std::int64_t width, std::int64_t count, std::int64_t threads, float* scores,
                           float* values, std::int64_t* numbers, float* entropies) {
    rank_rows(logits, noise, rows, {tokens, width, count, values, numbers, entropies}, scores, threads);
}

void specgym_rank_float32(const float* logits, const float* const* noise, const std::int64_t* tokens, std::int64_t rows,
                          std::int64_t width, std::int64_t count, std::int64_t threads, float* scores, float* values,
                          std::int64_t* numbers, float* entropies) {
    rank_rows(logits, noise, rows, {tokens, width, count, values, numbers, entropies}, scores, threads);
}

// The first `kept` of each row's `count` log-probabilities, rounded, and their tokens. Where the value is NaN, the entry
// may be out of range.
void specgym_candidates(const float* values, const std::int64_t* entries, const std::int64_t* tokens, std::int64_t rows,
                  std::int64_t count, std::int64_t kept, double* log_probs, std::int64_t* ids) {
    for (std::int64_t row = 0; row < rows; ++row)
        for (std::int64_t place = row * count; place < row * count + kept; ++place) {
            *log_probs++ = rounded(values[place]);
            *ids++ = !tokens || values[place] != values[place] ? entries[place] : tokens[entries[place]];
        }
}
}
