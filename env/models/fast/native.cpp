// A model's forward, and a linear layer, in bfloat16, on CPUs that vectors.hpp knows; see native.py for who calls them.
//
// A row's numbers do not depend on its company. Every result of a product is added up by one thread over the input's
// features in their order, and attention goes over the columns that a row sees in their order, as if the others were not
// there. So a row of a tree gets the very bits that it would get alone, as plain decoding's last row.
//
// Numbers are rounded to bfloat16 where transformers rounds them, but for attention: keys, values and the weights of
// attention are float32.
//
// Weights may be of eight bits, with a step for each result. What they are multiplied with becomes whole numbers of
// sixteen bits, with a step for every few features, which is finer than bfloat16 for all but the least of those.

#include "vectors.hpp"

#include <omp.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <type_traits>
#include <utility>

namespace {

constexpr int BLOCKS = 4;               // of weights that are multiplied together
constexpr int TILE = 6;                 // rows at a time
constexpr int GROUP = 24;               // rows that take turns
constexpr std::int64_t STRETCH = 6144;  // bytes of a block of weights over which they do, at most
constexpr std::int64_t STEP = 96;       // pairs of features whose whole numbers have one step
constexpr std::int64_t MOST_ROWS = 256; // of a text that are read at once
constexpr std::int64_t KEPT = 4 << 20;  // bytes of working memory that a thread keeps between calls

}  // namespace

extern "C" {

// Weights [outs, features] as [outs / 16, features / 2, 16, 2]: a register holds two features of 16 results.
struct Matrix {
    const void* pairs;   // Halves, or Eighths where there are steps
    const bf16* bias;    // or null
    const float* steps;  // [outs], or null
    std::int64_t features, outs;
};

struct Layer {
    Matrix joint, output, gate_up, down;
    const bf16 *attention_norm, *feed_forward_norm, *query_norm, *key_norm;  // the last two may be null
    std::int64_t heads, kv_heads, dim;
    float epsilon, scaling;
};

// What goes before the layers and after them.
struct Frame {
    const bf16* table;  // of embeddings, [vocabulary, hidden]
    std::int64_t vocabulary;
    // Without features the layers begin with the embeddings; otherwise with `fuse` of both, each normed.
    const bf16 *token_norm, *feature_norm;
    Matrix fuse;
    const bf16* norm;
    Matrix head;
    float epsilon;
};

// What a call works on. Seconds are added up, of linear layers, attention and the rest.
struct Work {
    const std::int64_t *tokens, *positions;  // [rows]
    const bf16* features;                // [rows, hidden], or null
    bf16* stream;                        // before the first layer, [rows, hidden]
    bf16* const* results;                // after each layer; they may share memory, but not with the one before
    bf16 *last, *logits;                 // after the last norm, [rows, hidden], and [kept, outs of the head]
    float *const *keys, *const *values;  // of each layer, [kv_heads, capacity, dim]
    const float *cos, *sin;              // by position, [dim] and [dim / 2] each
    const std::uint8_t* visible;         // which of the last columns a row sees, [rows, columns]; null: those before it
    std::int64_t columns, layers, rows, kept, start, capacity, threads;
    double seconds[3];
};
}

namespace {

// The part of `count` things that falls to a thread.
struct Share {
    std::int64_t first, last;
    Share(std::int64_t count) {
        const std::int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
        first = count * thread / threads, last = count * (thread + 1) / threads;
    }
};

struct Free {
    void operator()(char* memory) const { std::free(memory); }
};

// Working memory of the calling thread; much of it is not kept.
struct Scratch {
    static thread_local std::unique_ptr<char, Free> memory;
    static thread_local std::int64_t size;
    std::int64_t used = 0;

    explicit Scratch(std::int64_t bytes) {
        if (bytes <= size) return;
        memory.reset();  // before there is more
        size = (bytes + 4095) / 4096 * 4096;
        memory.reset(static_cast<char*>(std::aligned_alloc(4096, size)));
    }
    ~Scratch() {
        if (size <= KEPT) return;
        memory.reset();
        size = 0;
    }
    template <class T>
    T* take(std::int64_t count) {
        T* found = reinterpret_cast<T*>(memory.get() + used);
        used += padded(count * sizeof(T));
        return found;
    }
    static std::int64_t padded(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }
};
thread_local std::unique_ptr<char, Free> Scratch::memory;
thread_local std::int64_t Scratch::size = 0;

// What is multiplied with weights of a kind: the numbers of some rows, and for whole numbers their steps.
template <class Pair>
struct Inputs;

template <>
struct Inputs<Halves> {
    const Operand* x;  // [rows, features]
    Inputs from(std::int64_t row, std::int64_t features) const { return {x + row * features}; }
};

template <>
struct Inputs<Eighths> {
    const std::int16_t* x;  // [rows, features]
    const float* steps;     // [rows, steps of a row]
    static std::int64_t count(std::int64_t features) { return (features / 2 + STEP - 1) / STEP; }
    Inputs from(std::int64_t row, std::int64_t features) const {
        return {x + row * features, steps + row * count(features)};
    }
};

// What a tile works on: some rows, some blocks of weights, and a stretch of their features.
template <class Pair>
struct Piece {
    Inputs<Pair> inputs;
    const Pair* const* blocks;
    const Pair* const* fetched;          // blocks that will be needed, of which as long a stretch is fetched
    std::int64_t features, first, last;  // features of a row, and the pairs of the stretch
    float* sums;                         // [rows, BLOCKS, LANES], zero before the first stretch
};

// ROWS rows times WIDTH blocks of weights from FIRST on, while FETCHED others, from FROM on, are fetched.
template <int ROWS, int FIRST, int WIDTH, int FROM, int FETCHED, class Pair>
void pass(const Piece<Pair>& piece) {
    const Pair *weights[WIDTH], *fetched[FETCHED + 1];
    for (int block = 0; block < WIDTH; ++block) weights[block] = piece.blocks[FIRST + block];
    for (int block = 0; block < FETCHED; ++block) fetched[block] = piece.fetched[FROM + block] - piece.first * LANES;
    const auto fetch = [&](std::int64_t pair) {
        for (int block = 0; block < FETCHED; ++block)
            _mm_prefetch(reinterpret_cast<const char*>(fetched[block] + pair * LANES), _MM_HINT_T1);
    };
    const auto place = [&](int row, int block) { return piece.sums + (row * BLOCKS + FIRST + block) * LANES; };
    if constexpr (std::is_same_v<Pair, Halves>) {
        Vector sum[ROWS][WIDTH];
        for (int row = 0; row < ROWS; ++row)
            for (int block = 0; block < WIDTH; ++block) sum[row][block] = piece.first ? load(place(row, block)) : zero();
        add_products(piece.inputs.x, piece.features, weights, piece.first, piece.last, sum, fetch);
        for (int row = 0; row < ROWS; ++row)
            for (int block = 0; block < WIDTH; ++block) save(place(row, block), sum[row][block]);
    } else {
        const std::int64_t count = Inputs<Pair>::count(piece.features);
        for (std::int64_t first = piece.first; first < piece.last; first += STEP) {
            Integers sum[ROWS][WIDTH];
            for (int row = 0; row < ROWS; ++row)
                for (int block = 0; block < WIDTH; ++block) sum[row][block] = no_integers();
            add_products(piece.inputs.x, piece.features, weights, first, std::min(first + STEP, piece.last), sum, fetch);
            for (int row = 0; row < ROWS; ++row) {
                const Vector step = spread(piece.inputs.steps[row * count + first / STEP]);
                for (int block = 0; block < WIDTH; ++block)
                    save(place(row, block), fused(floats(sum[row][block]), step, first ? load(place(row, block)) : zero()));
            }
        }
    }
}

// ROWS rows times WIDTH blocks of weights, as many at once as the registers hold sums, while FETCHED others are fetched.
template <class Pair, int ROWS, int WIDTH, int FETCHED, int FIRST = 0>
void tile(const Piece<Pair>& piece) {
    if constexpr (FIRST < WIDTH) {
        constexpr int next = std::min(FIRST + SUMS / ROWS, WIDTH), from = FETCHED * FIRST / WIDTH;
        pass<ROWS, FIRST, next - FIRST, from, FETCHED * next / WIDTH - from>(piece);
        tile<Pair, ROWS, WIDTH, FETCHED, next>(piece);
    }
}

template <class Pair>
using Tile = void (*)(const Piece<Pair>&);

template <class Pair, int ROWS, int FETCHED>
constexpr std::array<Tile<Pair>, BLOCKS> tiles_that_fetch() {
    return {tile<Pair, ROWS, 1, FETCHED>, tile<Pair, ROWS, 2, FETCHED>, tile<Pair, ROWS, 3, FETCHED>,
            tile<Pair, ROWS, 4, FETCHED>};
}

// By blocks that are fetched and blocks that are multiplied.
template <class Pair, int ROWS>
constexpr std::array<std::array<Tile<Pair>, BLOCKS>, BLOCKS + 1> tiles_of() {
    return {tiles_that_fetch<Pair, ROWS, 0>(), tiles_that_fetch<Pair, ROWS, 1>(), tiles_that_fetch<Pair, ROWS, 2>(),
            tiles_that_fetch<Pair, ROWS, 3>(), tiles_that_fetch<Pair, ROWS, 4>()};
}

template <class Pair, int... ROWS>
constexpr auto all_tiles(std::integer_sequence<int, ROWS...>) {
    return std::array{tiles_of<Pair, ROWS + 1>()...};
}

template <class Pair>
constexpr auto TILES = all_tiles<Pair>(std::make_integer_sequence<int, TILE>());

// A group of rows times a few blocks of weights.
//
// Sums of few rows stay in registers. More rows take turns over a stretch of the weights that stays in the nearest cache,
// and meanwhile fetch the next one to the cache behind it, each a part: then the time to read the weights and the time to
// multiply do not add up.
template <class Pair>
void multiply_group(Inputs<Pair> inputs, std::int64_t rows, std::int64_t features, const Pair* const* blocks, int count,
                    std::int64_t step, float* sums) {
    const std::int64_t pairs = features / 2, tiles = (rows + TILE - 1) / TILE;
    const Pair* fetched[BLOCKS];
    if (tiles == 1) {
        const std::int64_t ahead = ahead_of(static_cast<int>(rows)) * (sizeof(Halves) / sizeof(Pair));  // as many bytes
        for (int block = 0; block < count; ++block) fetched[block] = blocks[block] + ahead * LANES;
        TILES<Pair>[rows - 1][ahead ? count : 0][count - 1]({inputs, blocks, fetched, features, 0, pairs, sums});
        return;
    }
    // Whole numbers have their steps over the same pairs in any company.
    constexpr std::int64_t unit = std::is_same_v<Pair, Halves> ? 1 : STEP, most = STRETCH / LANES / sizeof(Pair);
    const std::int64_t units = (pairs + unit - 1) / unit, stretches = (pairs + most - 1) / most;
    for (std::int64_t stretch = 0; stretch < stretches; ++stretch) {
        const std::int64_t first = units * stretch / stretches * unit;
        const std::int64_t last = std::min(units * (stretch + 1) / stretches * unit, pairs);
        const bool more = last < pairs;
        for (int block = 0; block < count; ++block) fetched[block] = blocks[block] + (more ? last : step * pairs) * LANES;
        for (std::int64_t number = 0; number < tiles; ++number) {  // of like heights: a low one takes as long as a high one
            const std::int64_t row = rows * number / tiles, height = rows * (number + 1) / tiles - row;
            const std::int64_t from = count * number / tiles, to = count * (number + 1) / tiles;
            TILES<Pair>[height - 1][to - from][count - 1]({inputs.from(row, features), blocks, fetched + from, features,
                                                           first, last, sums + row * BLOCKS * LANES});
        }
    }
}

// All rows times a few blocks of weights; `done(row, sums)` gets each row's, 16 for a block. The next blocks to be
// multiplied are `step` blocks further.
template <class Pair, class Done>
void multiply(Inputs<Pair> inputs, std::int64_t rows, const Matrix& matrix, const std::int64_t* numbers, int count,
              std::int64_t step, Done done) {
    const Pair* blocks[BLOCKS];
    for (int block = 0; block < count; ++block)
        blocks[block] = static_cast<const Pair*>(matrix.pairs) + numbers[block] * matrix.features / 2 * LANES;
    alignas(64) float sums[GROUP * BLOCKS * LANES];
    const std::int64_t groups = (rows + GROUP - 1) / GROUP;
    for (std::int64_t number = 0; number < groups; ++number) {
        const std::int64_t first = rows * number / groups, last = rows * (number + 1) / groups;
        multiply_group(inputs.from(first, matrix.features), last - first, matrix.features, blocks, count, step, sums);
        for (std::int64_t row = first; row < last; ++row) done(row, sums + (row - first) * BLOCKS * LANES);
    }
}

// Memory of this thread for whole numbers, of as many as the largest input has; none where no weights are of eight bits.
struct Whole {
    std::int16_t* numbers;
    float* steps;
};

// Rows as whole numbers. Every thread makes its own of all: that takes less than to wait for others.
Inputs<Eighths> made_whole(const Operand* x, std::int64_t rows, std::int64_t features, Whole memory) {
    const std::int64_t count = Inputs<Eighths>::count(features);
    for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t step = 0; step < count; ++step) {
            const std::int64_t first = 2 * STEP * step, last = std::min(first + 2 * STEP, features);
            const Operand* from = x + row * features;
            Vector most = zero(), wrong = zero();
            for (std::int64_t at = first; at < last; at += LANES) {
                const Vector value = widened(from + at);
                most = greatest(most, magnitude(value));
                wrong = wrong + (value - value);  // what is no number would be lost among whole ones
            }
            const float largest = most_of(most) + sum_of(wrong);
            const Vector factor = spread(largest > 0 ? 32767.0f / largest : 0.0f);
            for (std::int64_t at = first; at < last; at += LANES)
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(memory.numbers + row * features + at),
                                    whole(widened(from + at) * factor));
            memory.steps[row * count + step] = largest / 32767.0f;
        }
    }
    return {memory.numbers, memory.steps};
}

// Calls `multiplied` with inputs of the kind that the weights need.
template <class Multiplied>
void with_inputs(const Operand* x, std::int64_t rows, const Matrix& matrix, Whole memory, Multiplied multiplied) {
    if (matrix.steps) multiplied(made_whole(x, rows, matrix.features, memory));
    else multiplied(Inputs<Halves>{x});
}

inline Vector result_of(const Matrix& matrix, std::int64_t block, const float* sums) {
    const Vector value = matrix.steps ? load(sums) * load(matrix.steps + block * LANES) : load(sums);
    return matrix.bias ? value + widened(matrix.bias + block * LANES) : value;
}

// This thread's part of a linear layer. `done(row, block, value)` gets 16 results.
template <class Done>
void linear(const Operand* x, std::int64_t rows, const Matrix& matrix, Whole memory, Done done) {
    const Share share((matrix.outs + LANES - 1) / LANES);
    with_inputs(x, rows, matrix, memory, [&](auto inputs) {
        for (std::int64_t first = share.first; first < share.last; first += BLOCKS) {
            const std::int64_t numbers[] = {first, first + 1, first + 2, first + 3};
            const int count = static_cast<int>(std::min<std::int64_t>(BLOCKS, share.last - first));
            multiply(inputs, rows, matrix, numbers, count, BLOCKS, [&](std::int64_t row, const float* sums) {
                for (int block = 0; block < count; ++block)
                    done(row, first + block, result_of(matrix, first + block, sums + block * LANES));
            });
        }
    });
}

// This thread's part of silu(gate) * up, [rows, width].
void gate(const Operand* x, std::int64_t rows, const Matrix& matrix, Whole memory, Operand* gated) {
    const std::int64_t width = matrix.outs / 2, apart = width / LANES;
    const Share share(apart);
    with_inputs(x, rows, matrix, memory, [&](auto inputs) {
        for (std::int64_t first = share.first; first < share.last; first += BLOCKS / 2) {
            const int half = static_cast<int>(std::min<std::int64_t>(BLOCKS / 2, share.last - first));
            const std::int64_t second = half == 2 ? first + 1 : first + apart;
            const std::int64_t numbers[] = {first, second, first + apart, first + apart + 1};
            multiply(inputs, rows, matrix, numbers, 2 * half, BLOCKS / 2, [&](std::int64_t row, const float* sums) {
                for (int block = 0; block < half; ++block) {
                    const Vector open = rounded(result_of(matrix, first + block, sums + block * LANES));
                    const Vector up = rounded(result_of(matrix, first + block + apart, sums + (half + block) * LANES));
                    const Vector silu = open / (spread(1.0f) + exponential(zero() - open));
                    store(gated + row * width + (first + block) * LANES, rounded(silu) * up);
                }
            });
        }
    });
}

template <class Number>
void norm(const bf16* x, const bf16* weight, float epsilon, std::int64_t width, Number* result) {
    Vector squares = zero();
    for (std::int64_t at = 0; at < width; at += LANES) {
        const Vector value = widened(x + at);
        squares = fused(value, value, squares);
    }
    const Vector factor = spread(1.0f / std::sqrt(sum_of(squares) / width + epsilon));
    for (std::int64_t at = 0; at < width; at += LANES)
        store(result + at, widened(x + at) * factor * widened(weight + at));
}

// A head of a row, turned by the angles of its position.
void turn(const bf16* x, const Work& work, std::int64_t row, std::int64_t dim, float* result) {
    const std::int64_t half = dim / 2;
    const float *cos = work.cos + work.positions[row] * dim, *sin = work.sin + work.positions[row] * half;
    for (std::int64_t at = 0; at < half; at += LANES) {
        const Vector left = widened(x + at), right = widened(x + half + at), slope = load(sin + at);
        save(result + at, fused_less(right, slope, left * load(cos + at)));
        save(result + half + at, fused(left, slope, right * load(cos + half + at)));
    }
}

// The columns that each row sees, in their order.
struct Seen {
    std::int32_t* columns;   // [rows, all] if rows have columns of their own, otherwise [all]
    std::int32_t* counts;    // [rows]
    std::int64_t all;
    bool apart;

    const std::int32_t* of(std::int64_t row) const { return columns + (apart ? row * all : 0); }

    void list(const Work& work, std::int64_t row) const {
        std::int32_t* mine = columns + (apart ? row * all : 0);
        const auto prefix = static_cast<std::int32_t>(apart ? all - work.columns : all);
        std::iota(mine, mine + prefix, 0);
        if (!apart) return;
        std::int32_t count = prefix;
        for (std::int64_t at = 0; at < work.columns; ++at) {
            mine[count] = prefix + static_cast<std::int32_t>(at);
            count += work.visible[row * work.columns + at] != 0;
        }
        counts[row] = count;
    }
};

// Values summed up by the heads' weights, and divided by the `whole` of those; as many parts at once as registers hold.
template <int HEADS, int PARTS, int FIRST = 0>
void mix(const float* values, const std::int32_t* columns, std::int64_t count, const float* scores, std::int64_t apart,
         const Vector (&whole)[HEADS], Operand* result) {
    if constexpr (FIRST < PARTS) {
        constexpr int many = std::min(PARTS - FIRST, MIXED_PARTS);
        constexpr std::int64_t dim = PARTS * LANES;
        Vector mixed[HEADS][many];
        for (auto& head : mixed)
            for (auto& part : head) part = zero();
        for (std::int64_t at = 0; at < count; ++at) {
            const float* value = values + columns[at] * dim + FIRST * LANES;
            for (int part = 0; part < many; ++part) {
                const Vector vector = load(value + part * LANES);
                for (int head = 0; head < HEADS; ++head)
                    mixed[head][part] = fused(vector, spread(scores[head * apart + at]), mixed[head][part]);
            }
        }
        for (int head = 0; head < HEADS; ++head)
            for (int part = 0; part < many; ++part)
                store(result + head * dim + (FIRST + part) * LANES, mixed[head][part] / whole[head]);
        mix<HEADS, PARTS, FIRST + many>(values, columns, count, scores, apart, whole, result);
    }
}

// Attention of HEADS heads of a row that share keys and values, each PARTS vectors wide.
template <int HEADS, int PARTS>
void attend(const float* queries, const float* keys, const float* values, const std::int32_t* columns, std::int64_t count,
            float scaling, float* scores, std::int64_t apart, Operand* result) {
    constexpr std::int64_t dim = PARTS * LANES;
    {
        Vector query[HEADS][PARTS];
        for (int head = 0; head < HEADS; ++head)
            for (int part = 0; part < PARTS; ++part)
                query[head][part] = load(queries + head * dim + part * LANES) * spread(scaling);
        for (std::int64_t at = 0; at < count; ++at) {
            const float* key = keys + columns[at] * dim;
            Vector product[HEADS];
            for (int head = 0; head < HEADS; ++head) product[head] = zero();
            for (int part = 0; part < PARTS; ++part) {
                const Vector vector = load(key + part * LANES);
                for (int head = 0; head < HEADS; ++head)
                    product[head] = fused(vector, query[head][part], product[head]);
            }
            for (int head = 0; head < HEADS; ++head) scores[head * apart + at] = sum_of(product[head]);
        }
    }
    Vector whole[HEADS];
    for (int head = 0; head < HEADS; ++head) {
        float* mine = scores + head * apart;
        for (std::int64_t at = count; at % LANES; ++at) mine[at] = -INFINITY;
        Vector most = spread(-INFINITY), sum = zero();
        for (std::int64_t at = 0; at < count; at += LANES) most = greatest(most, load(mine + at));
        most = spread(most_of(most));
        for (std::int64_t at = 0; at < count; at += LANES) {
            Vector weight = exponential(load(mine + at) - most);
            if (count - at < LANES) weight = first_of(weight, count - at);
            sum = sum + weight;
            save(mine + at, weight);
        }
        whole[head] = spread(sum_of(sum));
    }
    mix<HEADS, PARTS>(values, columns, count, scores, apart, whole, result);
}

using Attend = void (*)(const float*, const float*, const float*, const std::int32_t*, std::int64_t, float, float*,
                        std::int64_t, Operand*);

// Heads that are attended together, and how; as many as registers hold.
struct Attention {
    int heads;
    Attend together, alone;
};

template <int PARTS>
constexpr Attention attention_by() {
    return {heads_together(PARTS), attend<heads_together(PARTS), PARTS>, attend<1, PARTS>};
}

Attention attention_of(std::int64_t dim) {
    switch (dim) {
        case 32: return attention_by<2>();
        case 64: return attention_by<4>();
        case 96: return attention_by<6>();
        case 128: return attention_by<8>();
        default: return {0, nullptr, nullptr};
    }
}

// Buffers of a call, shared by its threads.
struct Buffers {
    std::int64_t heads_width, group, widest;
    bf16 *joint, *middle;
    Operand *both, *normed, *mixed, *gated;
    float *queries, *scores;
    std::int64_t columns;  // of scores
    Seen seen;
    std::int16_t* numbers;  // of all threads
    float* steps;

    Whole whole(std::int64_t rows) const {
        const std::int64_t thread = omp_get_thread_num();
        return {numbers + thread * rows * widest, steps + thread * rows * Inputs<Eighths>::count(widest)};
    }

    // Numbers of the largest input of a row of weights of eight bits.
    static std::int64_t widest_of(const Frame& frame, const Layer& layer) {
        std::int64_t most = 0;
        for (const Matrix* each : {&frame.fuse, &frame.head, &layer.joint, &layer.output, &layer.gate_up, &layer.down})
            if (each->steps) most = std::max(most, each->features);
        return most;
    }

    static std::int64_t of_scores(const Layer& layer, const Work& work) {
        return Scratch::padded((work.start + work.rows) * sizeof(float)) / sizeof(float) * attention_of(layer.dim).heads;
    }

    static std::int64_t bytes(const Frame& frame, const Layer& layer, const Work& work) {
        const std::int64_t hidden = layer.joint.features, all = work.start + work.rows;
        const std::int64_t narrow = layer.joint.outs + hidden;
        const std::int64_t read = frame.fuse.features + hidden + layer.output.features + layer.down.features;
        const std::int64_t group = layer.heads / layer.kv_heads * layer.dim, widest = widest_of(frame, layer);
        const std::int64_t whole = widest * sizeof(std::int16_t) + Inputs<Eighths>::count(widest) * sizeof(float);
        return 1024 + work.threads * work.rows * whole + work.rows * (narrow * sizeof(bf16) + read * sizeof(Operand)) +
               work.threads * (of_scores(layer, work) + group) * sizeof(float) +
               ((work.visible ? work.rows : 1) * all + work.rows + LANES) * sizeof(std::int32_t);
    }

    Buffers(const Frame& frame, const Layer& layer, const Work& work, Scratch& scratch) {
        const std::int64_t rows = work.rows, hidden = layer.joint.features, all = work.start + rows;
        heads_width = layer.joint.outs, group = layer.heads / layer.kv_heads;
        columns = of_scores(layer, work);
        both = scratch.take<Operand>(rows * frame.fuse.features);
        normed = scratch.take<Operand>(rows * hidden);
        middle = scratch.take<bf16>(rows * hidden);
        joint = scratch.take<bf16>(rows * heads_width);
        mixed = scratch.take<Operand>(rows * layer.output.features);
        gated = scratch.take<Operand>(rows * layer.down.features);
        scores = scratch.take<float>(work.threads * columns);
        queries = scratch.take<float>(work.threads * group * layer.dim);
        widest = widest_of(frame, layer);
        numbers = scratch.take<std::int16_t>(work.threads * rows * widest);
        steps = scratch.take<float>(work.threads * rows * Inputs<Eighths>::count(widest));
        seen.all = all, seen.apart = work.visible != nullptr;
        seen.counts = scratch.take<std::int32_t>(rows);
        seen.columns = scratch.take<std::int32_t>((seen.apart ? rows : 1) * all + LANES);
    }
};

// Keys and values of this thread's rows go to the cache.
void remember(const Layer& layer, const Work& work, const Buffers& at, float* keys, float* values) {
    const Share share(work.rows);
    const std::int64_t dim = layer.dim;
    for (std::int64_t row = share.first; row < share.last; ++row) {
        bf16* states = at.joint + row * at.heads_width;
        for (std::int64_t head = 0; head < layer.heads + layer.kv_heads; ++head) {
            const bf16* weight = head < layer.heads ? layer.query_norm : layer.key_norm;
            if (weight) norm(states + head * dim, weight, layer.epsilon, dim, states + head * dim);
        }
        for (std::int64_t head = 0; head < layer.kv_heads; ++head) {
            const std::int64_t place = (head * work.capacity + work.start + row) * dim;
            const bf16* key = states + (layer.heads + head) * dim;
            const bf16* value = key + layer.kv_heads * dim;
            turn(key, work, row, dim, keys + place);
            for (std::int64_t part = 0; part < dim; part += LANES)
                save(values + place + part, widened(value + part));
        }
    }
}

// Lists what this thread's rows see.
void look(const Work& work, const Seen& seen) {
    const Share share(work.rows);
    for (std::int64_t row = share.first; row < share.last; ++row) {
        if (seen.apart) seen.list(work, row);
        else seen.counts[row] = static_cast<std::int32_t>(work.start + row + 1);
    }
    if (!seen.apart && omp_get_thread_num() == 0) seen.list(work, 0);
}

// Attention of this thread's part of rows and heads.
void attend_all(const Layer& layer, const Work& work, const Buffers& at, const float* all_keys, const float* all_values) {
    const Attention attention = attention_of(layer.dim);
    const std::int64_t dim = layer.dim, apart = at.columns / attention.heads;
    float* scores = at.scores + omp_get_thread_num() * at.columns;
    float* queries = at.queries + omp_get_thread_num() * at.group * dim;
    const std::int64_t steps = (at.group + attention.heads - 1) / attention.heads;
    const Share share(work.rows * layer.kv_heads * steps);
    for (std::int64_t number = share.first; number < share.last; ++number) {
        // Heads outside, rows inside: rows share the keys and values that are in the near caches.
        const std::int64_t row = number % work.rows, kv = number / work.rows / steps;
        const std::int64_t from = number / work.rows % steps * attention.heads;
        const std::int64_t till = std::min<std::int64_t>(from + attention.heads, at.group), head = kv * at.group + from;
        const float *keys = all_keys + kv * work.capacity * dim, *values = all_values + kv * work.capacity * dim;
        Operand* result = at.mixed + row * layer.output.features + head * dim;
        for (std::int64_t next = 0; next < till - from; ++next)
            turn(at.joint + row * at.heads_width + (head + next) * dim, work, row, dim, queries + next * dim);
        if (till - from == attention.heads) {
            attention.together(queries, keys, values, at.seen.of(row), at.seen.counts[row], layer.scaling, scores, apart,
                               result);
            continue;
        }
        for (std::int64_t next = 0; next < till - from; ++next)
            attention.alone(queries + next * dim, keys, values, at.seen.of(row), at.seen.counts[row], layer.scaling, scores,
                            apart, result + next * dim);
    }
}

// Of this thread's rows.
void norm_all(const bf16* stream, const bf16* weight, const Layer& layer, std::int64_t rows, Operand* result) {
    const std::int64_t hidden = layer.joint.features;
    const Share share(rows);
    for (std::int64_t row = share.first; row < share.last; ++row)
        norm(stream + row * hidden, weight, layer.epsilon, hidden, result + row * hidden);
}

// A linear layer whose rounded results are added to a stream.
void add_linear(const Operand* x, std::int64_t rows, const Matrix& matrix, Whole memory, const bf16* stream, bf16* result) {
    linear(x, rows, matrix, memory, [&](std::int64_t row, std::int64_t block, Vector value) {
        const std::int64_t place = row * matrix.outs + block * LANES;
        store(result + place, widened(stream + place) + rounded(value));
    });
}

constexpr bool IS_READ_AS_IS = std::is_same_v<Operand, bf16>;

// What a product takes of `count` numbers, a multiple of LANES.
template <class Number>
const Operand* operands(const Number* x, std::int64_t count, Scratch& scratch) {
    if constexpr (IS_READ_AS_IS) {
        return x;
    } else {
        auto* made = scratch.take<Operand>(count);
        for (std::int64_t at = 0; at < count; at += LANES) store(made + at, widened(x + at));
        return made;
    }
}

// Waits for the other threads, and has the first one take the time.
struct Clock {
    Work& work;
    double last;
    explicit Clock(Work& work) : work(work), last(omp_get_wtime()) {}
    void wait(int what) {
#pragma omp barrier
        if (omp_get_thread_num()) return;
        const double now = omp_get_wtime();
        work.seconds[what] += now - last;
        last = now;
    }
};

// 16 results or, at the end of a row, as many as it has.
void store_block(bf16* row, std::int64_t outs, std::int64_t block, Vector value) {
    bf16* place = row + block * LANES;
    if (const std::int64_t left = outs - block * LANES; left >= LANES) {
        store(place, value);
    } else {
        bf16 each[LANES];
        store(each, value);
        std::copy(each, each + left, place);
    }
}

// A linear layer of some rows.
void linear_part(const Matrix& matrix, const bf16* x, bf16* result, std::int64_t rows, std::int64_t threads) {
    const std::int64_t count = rows * matrix.features, steps = rows * Inputs<Eighths>::count(matrix.features);
    const std::int64_t whole = matrix.steps ? threads * (count * sizeof(std::int16_t) + steps * sizeof(float)) : 0;
    Scratch scratch(256 + (IS_READ_AS_IS ? 0 : count * sizeof(Operand)) + whole);
    const Operand* inputs = operands(x, count, scratch);
    auto* numbers = scratch.take<std::int16_t>(whole ? threads * count : 0);
    auto* all_steps = scratch.take<float>(whole ? threads * steps : 0);
#pragma omp parallel num_threads(threads)
    {
        const std::int64_t thread = whole ? omp_get_thread_num() : 0;
        linear(inputs, rows, matrix, {numbers + thread * count, all_steps + thread * steps},
               [&](std::int64_t row, std::int64_t block, Vector value) {
                   store_block(result + row * matrix.outs, matrix.outs, block, value);
               });
    }
}

enum Part { LINEARS, ATTENTION, REST };

// What the layers begin with.
void begin(const Frame& frame, const Work& work, const Buffers& at, std::int64_t hidden, Clock& clock) {
    const Share share(work.rows);
    for (std::int64_t row = share.first; row < share.last; ++row) {
        const bf16* embedding = frame.table + work.tokens[row] * hidden;
        if (!work.features) {
            std::copy(embedding, embedding + hidden, work.stream + row * hidden);
            continue;
        }
        Operand* both = at.both + row * frame.fuse.features;
        norm(embedding, frame.token_norm, frame.epsilon, hidden, both);
        norm(work.features + row * hidden, frame.feature_norm, frame.epsilon, hidden, both + hidden);
    }
    clock.wait(REST);
    if (!work.features) return;
    linear(at.both, work.rows, frame.fuse, at.whole(work.rows), [&](std::int64_t row, std::int64_t block, Vector value) {
        store(work.stream + row * hidden + block * LANES, value);
    });
    clock.wait(LINEARS);
}

// What comes of the last layer's results: the last norm of all rows, and logits of the last ones.
void end(const Frame& frame, const Work& work, const Buffers& at, std::int64_t hidden, const bf16* stream, Clock& clock) {
    const Share share(work.rows);
    for (std::int64_t row = share.first; row < share.last; ++row) {
        bf16* last = work.last + row * hidden;
        norm(stream + row * hidden, frame.norm, frame.epsilon, hidden, last);
        for (std::int64_t part = 0; part < hidden; part += LANES)
            store(at.normed + row * hidden + part, widened(last + part));
    }
    clock.wait(REST);
    if (!work.kept) return;
    const Operand* kept = at.normed + (work.rows - work.kept) * hidden;
    linear(kept, work.kept, frame.head, at.whole(work.rows), [&](std::int64_t row, std::int64_t block, Vector value) {
        store_block(work.logits + row * frame.head.outs, frame.head.outs, block, value);
    });
    clock.wait(LINEARS);
}

// A forward of the rows of a text, or of a part of it, whose results begin `behind` numbers after those of the whole.
void run_part(const Frame& frame, const Layer* const* layers, Work& work, std::int64_t behind) {
    Scratch scratch(Buffers::bytes(frame, *layers[0], work));
    const Buffers at(frame, *layers[0], work, scratch);
    const std::int64_t rows = work.rows, hidden = layers[0]->joint.features;
#pragma omp parallel num_threads(work.threads)
    {
        Clock clock(work);
        const Whole memory = at.whole(rows);
        look(work, at.seen);
        begin(frame, work, at, hidden, clock);
        const bf16* stream = work.stream;
        for (std::int64_t number = 0; number < work.layers; ++number) {
            const Layer& layer = *layers[number];
            float *keys = work.keys[number], *values = work.values[number];
            bf16* result = work.results[number] + behind;
            norm_all(stream, layer.attention_norm, layer, rows, at.normed);
            clock.wait(REST);
            linear(at.normed, rows, layer.joint, memory, [&](std::int64_t row, std::int64_t block, Vector value) {
                store(at.joint + row * at.heads_width + block * LANES, value);
            });
            clock.wait(LINEARS);
            remember(layer, work, at, keys, values);
            clock.wait(REST);
            attend_all(layer, work, at, keys, values);
            clock.wait(ATTENTION);
            add_linear(at.mixed, rows, layer.output, memory, stream, at.middle);
            clock.wait(LINEARS);
            norm_all(at.middle, layer.feed_forward_norm, layer, rows, at.normed);
            clock.wait(REST);
            gate(at.normed, rows, layer.gate_up, memory, at.gated);
            clock.wait(LINEARS);
            add_linear(at.gated, rows, layer.down, memory, at.middle, result);
            clock.wait(LINEARS);
            stream = result;
        }
        end(frame, work, at, hidden, stream, clock);
    }
}

}  // namespace

extern "C" {

void specgym_linear(const Matrix* matrix, const bf16* x, bf16* result, std::int64_t rows, std::int64_t threads) {
    for (std::int64_t done = 0; done < rows; done += MOST_ROWS)
        linear_part(*matrix, x + done * matrix->features, result + done * matrix->outs, std::min(MOST_ROWS, rows - done),
                    threads);
}

// A model's forward, whose layers are of one shape. A text goes through them part by part: its working memory stays small.
// Returns a row whose token the table does not have, and does nothing then; -1 if there is none.
std::int64_t specgym_forward(const Frame* frame, const Layer* const* layers, Work* work) {
    for (std::int64_t row = 0; row < work->rows; ++row)
        if (work->tokens[row] < 0 || work->tokens[row] >= frame->vocabulary) return row;
    const std::int64_t most = work->visible ? work->rows : MOST_ROWS, hidden = layers[0]->joint.features;
    const std::int64_t unkept = work->rows - work->kept;
    Work part = *work;
    for (std::int64_t done = 0; done < work->rows; done += most) {
        part.rows = std::min(most, work->rows - done), part.start = work->start + done;
        part.tokens = work->tokens + done, part.positions = work->positions + done;
        part.stream = work->stream + done * hidden, part.last = work->last + done * hidden;
        if (work->features) part.features = work->features + done * hidden;
        part.kept = std::clamp<std::int64_t>(done + part.rows - unkept, 0, part.rows);
        part.logits = work->logits + std::max<std::int64_t>(done - unkept, 0) * frame->head.outs;
        run_part(*frame, layers, part, done * hidden);
    }
    std::copy(std::begin(part.seconds), std::end(part.seconds), work->seconds);
    return -1;
}
}
