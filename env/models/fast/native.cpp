// A model's forward and a single linear layer, in bfloat16, on CPUs that vectors.hpp supports; called by native.py.
//
// A row's results do not depend on the other rows. Every result of a product is summed by one thread over the features
// in order. Attention goes in order over the columns that a row sees and skips the others. So a row of a tree gets the
// same bits as the last row of plain decoding.
//
// Numbers are rounded to bfloat16 where transformers rounds them, except in attention: keys, values and the weights of
// attention are float32.
//
// Weights may have eight bits, with a step for each result. Then their inputs become integers of sixteen bits, with a
// step for every few features. This is finer than bfloat16 for all but the smallest of these features.

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

constexpr int BLOCKS = 4;               // blocks of weights that are multiplied together
constexpr int TILE = 6;                 // rows that are multiplied together
constexpr int GROUP = 24;               // rows that share a stretch of weights in the cache
constexpr std::int64_t STRETCH = 6144;  // most bytes of a block of weights in a stretch
constexpr std::int64_t PART = 64;       // pairs of features that are brought into order together
constexpr std::int64_t STEP = 96;       // pairs of features whose integers share a step
constexpr std::int64_t MOST_ROWS = 256; // rows of a text that are read at once
constexpr std::int64_t KEPT = 4 << 20;  // bytes of working memory that a thread keeps between calls

}  // namespace

extern "C" {

// Weights of 16 results that stay where they are: the first row [features], the biases or null, and how many rows there
// are, fewer than 16 at the end of a matrix.
struct Place {
    const bf16 *rows, *bias;
    std::int64_t count;
};

// Weights [outs, features] as [outs / 16, features / 2, 16, 2]: a register holds two features of 16 results. Weights that
// somebody else may change stay where they are, and are brought into this order on every call.
struct Matrix {
    const void* pairs;   // Int8Pair if there are steps, else Bf16Pair; null if weights stay where they are
    const Place* places; // [outs / 16], of such weights, or null
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

// The parts of a model before and after its layers.
struct Frame {
    const bf16* table;  // of embeddings, [vocabulary, hidden]
    std::int64_t vocabulary;
    // Without features the layers begin with embeddings; otherwise with `fuse` of normed embeddings and features.
    const bf16 *token_norm, *feature_norm;
    Matrix fuse;
    const bf16* norm;
    Matrix head;
    float epsilon;
};

// The inputs and outputs of a call. Seconds of linear layers, attention and the rest are added to `seconds`.
struct Work {
    const std::int64_t *tokens, *positions;  // [rows]
    const bf16* features;                // [rows, hidden], or null
    bf16* stream;                        // before the first layer, [rows, hidden]
    bf16* const* results;                // after each layer; a layer must not write where it reads
    bf16 *last, *logits;                 // after the last norm, [rows, hidden], and [kept, outs of the head]
    float *const *keys, *const *values;  // of each layer, [kv_heads, capacity, dim]
    const float *cos, *sin;              // by position, [dim] and [dim / 2] each
    const std::uint8_t* visible;         // which of the last columns a row sees, [rows, columns]; null: all before it
    std::int64_t columns, layers, rows, kept, start, capacity, threads;
    double seconds[3];
};
}

namespace {

// The calling thread's part of `count` items.
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

// Working memory of the calling thread. Up to KEPT bytes stay allocated for the next call.
struct Scratch {
    static thread_local std::unique_ptr<char, Free> memory;
    static thread_local std::int64_t size;
    std::int64_t used = 0;

    explicit Scratch(std::int64_t bytes) {
        if (bytes <= size) return;
        memory.reset();  // frees the old memory first
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

// Some rows in the form that a kind of weights is multiplied with; integers come with their steps.
template <class Pair>
struct Inputs;

template <>
struct Inputs<Bf16Pair> {
    const Operand* x;  // [rows, features]
    Inputs from(std::int64_t row, std::int64_t features) const { return {x + row * features}; }
};

template <>
struct Inputs<Int8Pair> {
    const std::int16_t* x;  // [rows, features]
    const float* steps;     // [rows, steps of a row]
    static std::int64_t count(std::int64_t features) { return (features / 2 + STEP - 1) / STEP; }
    Inputs from(std::int64_t row, std::int64_t features) const {
        return {x + row * features, steps + row * count(features)};
    }
};

// The work of a tile: some rows, some blocks of weights, and a stretch of their features.
template <class Pair>
struct Piece {
    Inputs<Pair> inputs;
    const Pair* const* blocks;
    const Pair* const* fetched;          // blocks that come next; a stretch of the same length is prefetched
    std::int64_t features, first, last;  // features of a row, and the pairs of the stretch
    float* sums;                         // [rows, BLOCKS, LANES], zero before the first stretch
};

// Multiplies ROWS rows by WIDTH blocks of weights from FIRST on, and prefetches FETCHED others, from FROM on.
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
    if constexpr (std::is_same_v<Pair, Bf16Pair>) {
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
                for (int block = 0; block < WIDTH; ++block) sum[row][block] = zero_integers();
            add_products(piece.inputs.x, piece.features, weights, first, std::min(first + STEP, piece.last), sum, fetch);
            for (int row = 0; row < ROWS; ++row) {
                const Vector step = broadcast(piece.inputs.steps[row * count + first / STEP]);
                for (int block = 0; block < WIDTH; ++block)
                    save(place(row, block),
                         fused_add(to_floats(sum[row][block]), step, first ? load(place(row, block)) : zero()));
            }
        }
    }
}

// Multiplies ROWS rows by WIDTH blocks of weights, as many blocks at once as registers hold sums, and prefetches FETCHED
// others.
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

// Tiles by the number of prefetched blocks and the number of multiplied blocks.
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

// Multiplies a group of rows by a few blocks of weights.
//
// The sums of few rows stay in registers. More rows go one tile after the other over a stretch of the weights that stays
// in the first-level cache. Meanwhile, each tile prefetches a part of the next stretch to the second-level cache. So
// reading and multiplying overlap.
template <class Pair>
void multiply_group(Inputs<Pair> inputs, std::int64_t rows, std::int64_t features, const Pair* const* blocks, int count,
                    std::int64_t step, float* sums) {
    const std::int64_t pairs = features / 2, tiles = (rows + TILE - 1) / TILE;
    const Pair* fetched[BLOCKS];
    if (tiles == 1) {
        // The distance in bytes is the same for both kinds of weights.
        const std::int64_t ahead = prefetch_distance(static_cast<int>(rows)) * (sizeof(Bf16Pair) / sizeof(Pair));
        for (int block = 0; block < count; ++block) fetched[block] = blocks[block] + ahead * LANES;
        TILES<Pair>[rows - 1][ahead ? count : 0][count - 1]({inputs, blocks, fetched, features, 0, pairs, sums});
        return;
    }
    // Integers have their steps over the same pairs for any number of rows.
    constexpr std::int64_t unit = std::is_same_v<Pair, Bf16Pair> ? 1 : STEP, most = STRETCH / LANES / sizeof(Pair);
    const std::int64_t units = (pairs + unit - 1) / unit, stretches = (pairs + most - 1) / most;
    for (std::int64_t stretch = 0; stretch < stretches; ++stretch) {
        const std::int64_t first = units * stretch / stretches * unit;
        const std::int64_t last = std::min(units * (stretch + 1) / stretches * unit, pairs);
        const bool more = last < pairs;
        for (int block = 0; block < count; ++block) fetched[block] = blocks[block] + (more ? last : step * pairs) * LANES;
        // Tiles have nearly equal heights: a low tile takes as long as a high one.
        for (std::int64_t number = 0; number < tiles; ++number) {
            const std::int64_t row = rows * number / tiles, height = rows * (number + 1) / tiles - row;
            const std::int64_t from = count * number / tiles, to = count * (number + 1) / tiles;
            TILES<Pair>[height - 1][to - from][count - 1]({inputs.from(row, features), blocks, fetched + from, features,
                                                           first, last, sums + row * BLOCKS * LANES});
        }
    }
}

// Multiplies a group of rows by a few blocks of weights that stay where they are. Each part of them is brought into order
// in the first-level cache, while the same part of the blocks that come next is prefetched to the second-level cache.
void multiply_in_place(Inputs<Bf16Pair> inputs, std::int64_t rows, std::int64_t features, const Place* const* from,
                       const Place* const* next, int count, float* sums) {
    alignas(64) Bf16Pair ordered[BLOCKS * PART * LANES];
    const Bf16Pair* blocks[BLOCKS];
    const std::int64_t pairs = features / 2, tiles = (rows + TILE - 1) / TILE;
    for (std::int64_t first = 0; first < pairs; first += PART) {
        const std::int64_t last = std::min(first + PART, pairs);
        for (int block = 0; block < count; ++block) {
            Bf16Pair* part = ordered + block * PART * LANES;
            order_pairs(from[block]->rows, from[block]->count, features, first, last, part);
            for (std::int64_t row = 0; row < next[block]->count; ++row)
                for (std::int64_t pair = first; pair < last; pair += 16)  // a cache line holds 16 pairs
                    _mm_prefetch(reinterpret_cast<const char*>(next[block]->rows + row * features + 2 * pair), _MM_HINT_T1);
            blocks[block] = part - first * LANES;
        }
        for (std::int64_t number = 0; number < tiles; ++number) {
            const std::int64_t row = rows * number / tiles, height = rows * (number + 1) / tiles - row;
            TILES<Bf16Pair>[height - 1][0][count - 1]({inputs.from(row, features), blocks, blocks, features, first, last,
                                                       sums + row * BLOCKS * LANES});
        }
    }
}

// Multiplies all rows by a few blocks of weights. `done(row, sums)` receives each row's sums, 16 for a block. The blocks
// that are multiplied next are `step` blocks further.
template <class Pair, class Done>
void multiply(Inputs<Pair> inputs, std::int64_t rows, const Matrix& matrix, const std::int64_t* numbers, int count,
              std::int64_t step, Done done) {
    const Pair* blocks[BLOCKS];
    const Place *from[BLOCKS], *next[BLOCKS];
    const std::int64_t most = (matrix.outs - 1) / LANES;
    for (int block = 0; block < count; ++block) {
        blocks[block] = static_cast<const Pair*>(matrix.pairs) + numbers[block] * matrix.features / 2 * LANES;
        if (!matrix.places) continue;
        from[block] = matrix.places + numbers[block];
        next[block] = matrix.places + std::min(numbers[block] + step, most);
    }
    alignas(64) float sums[GROUP * BLOCKS * LANES];
    const std::int64_t groups = (rows + GROUP - 1) / GROUP;
    for (std::int64_t number = 0; number < groups; ++number) {
        const std::int64_t first = rows * number / groups, last = rows * (number + 1) / groups;
        const Inputs<Pair> group = inputs.from(first, matrix.features);
        if constexpr (std::is_same_v<Pair, Bf16Pair>) {
            if (matrix.places) multiply_in_place(group, last - first, matrix.features, from, next, count, sums);
            else multiply_group(group, last - first, matrix.features, blocks, count, step, sums);
        } else {
            multiply_group(group, last - first, matrix.features, blocks, count, step, sums);
        }
        for (std::int64_t row = first; row < last; ++row) done(row, sums + (row - first) * BLOCKS * LANES);
    }
}

// A thread's memory for integer inputs, large enough for the widest input; empty if no weights have eight bits.
struct IntegerMemory {
    std::int16_t* numbers;
    float* steps;
};

// Rounds rows to integers. Every thread does this for all rows, which is faster than waiting for other threads.
Inputs<Int8Pair> to_integer_inputs(const Operand* x, std::int64_t rows, std::int64_t features, IntegerMemory memory) {
    const std::int64_t count = Inputs<Int8Pair>::count(features);
    for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t step = 0; step < count; ++step) {
            const std::int64_t first = 2 * STEP * step, last = std::min(first + 2 * STEP, features);
            const Operand* from = x + row * features;
            Vector most = zero(), wrong = zero();
            for (std::int64_t at = first; at < last; at += LANES) {
                const Vector value = widened(from + at);
                most = maximum(most, magnitude(value));
                wrong = wrong + (value - value);  // NaN and infinity would be lost among integers
            }
            const float largest = max_of(most) + sum_of(wrong);
            const Vector factor = broadcast(largest > 0 ? 32767.0f / largest : 0.0f);
            for (std::int64_t at = first; at < last; at += LANES)
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(memory.numbers + row * features + at),
                                    to_int16(widened(from + at) * factor));
            memory.steps[row * count + step] = largest / 32767.0f;
        }
    }
    return {memory.numbers, memory.steps};
}

// Calls `multiplied` with inputs in the form that the weights need.
template <class Multiplied>
void with_inputs(const Operand* x, std::int64_t rows, const Matrix& matrix, IntegerMemory memory, Multiplied multiplied) {
    if (matrix.steps) multiplied(to_integer_inputs(x, rows, matrix.features, memory));
    else multiplied(Inputs<Bf16Pair>{x});
}

inline Vector result_of(const Matrix& matrix, std::int64_t block, const float* sums) {
    const Vector value = matrix.steps ? load(sums) * load(matrix.steps + block * LANES) : load(sums);
    const bf16* bias = matrix.bias ? matrix.bias + block * LANES : nullptr;
    if (matrix.places) bias = matrix.places[block].bias;
    return bias ? value + widened(bias) : value;
}

// This thread's part of a linear layer. `done(row, block, value)` receives 16 results.
template <class Done>
void linear(const Operand* x, std::int64_t rows, const Matrix& matrix, IntegerMemory memory, Done done) {
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
void gate(const Operand* x, std::int64_t rows, const Matrix& matrix, IntegerMemory memory, Operand* gated) {
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
                    const Vector silu = open / (broadcast(1.0f) + exponential(zero() - open));
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
        squares = fused_add(value, value, squares);
    }
    const Vector factor = broadcast(1.0f / std::sqrt(sum_of(squares) / width + epsilon));
    for (std::int64_t at = 0; at < width; at += LANES)
        store(result + at, widened(x + at) * factor * widened(weight + at));
}

// Rotates a head of a row by the angles of its position.
void turn(const bf16* x, const Work& work, std::int64_t row, std::int64_t dim, float* result) {
    const std::int64_t half = dim / 2;
    const float *cos = work.cos + work.positions[row] * dim, *sin = work.sin + work.positions[row] * half;
    for (std::int64_t at = 0; at < half; at += LANES) {
        const Vector left = widened(x + at), right = widened(x + half + at), slope = load(sin + at);
        save(result + at, fused_subtract(right, slope, left * load(cos + at)));
        save(result + half + at, fused_add(left, slope, right * load(cos + half + at)));
    }
}

// The columns that each row sees, in order.
struct Seen {
    std::int32_t* columns;   // [rows, all] if each row has a list of its own, otherwise [all]
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

// Sums values by the heads' weights and divides by `whole`, the sum of the weights; as many parts at once as fit into
// registers.
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
                    mixed[head][part] = fused_add(vector, broadcast(scores[head * apart + at]), mixed[head][part]);
            }
        }
        for (int head = 0; head < HEADS; ++head)
            for (int part = 0; part < many; ++part)
                store(result + head * dim + (FIRST + part) * LANES, mixed[head][part] / whole[head]);
        mix<HEADS, PARTS, FIRST + many>(values, columns, count, scores, apart, whole, result);
    }
}

// Attention of a row for HEADS heads that share keys and values; each head is PARTS vectors wide.
template <int HEADS, int PARTS>
void attend(const float* queries, const float* keys, const float* values, const std::int32_t* columns, std::int64_t count,
            float scaling, float* scores, std::int64_t apart, Operand* result) {
    constexpr std::int64_t dim = PARTS * LANES;
    {
        Vector query[HEADS][PARTS];
        for (int head = 0; head < HEADS; ++head)
            for (int part = 0; part < PARTS; ++part)
                query[head][part] = load(queries + head * dim + part * LANES) * broadcast(scaling);
        for (std::int64_t at = 0; at < count; ++at) {
            const float* key = keys + columns[at] * dim;
            Vector product[HEADS];
            for (int head = 0; head < HEADS; ++head) product[head] = zero();
            for (int part = 0; part < PARTS; ++part) {
                const Vector vector = load(key + part * LANES);
                for (int head = 0; head < HEADS; ++head)
                    product[head] = fused_add(vector, query[head][part], product[head]);
            }
            for (int head = 0; head < HEADS; ++head) scores[head * apart + at] = sum_of(product[head]);
        }
    }
    Vector whole[HEADS];
    for (int head = 0; head < HEADS; ++head) {
        float* mine = scores + head * apart;
        for (std::int64_t at = count; at % LANES; ++at) mine[at] = -INFINITY;
        Vector most = broadcast(-INFINITY), sum = zero();
        for (std::int64_t at = 0; at < count; at += LANES) most = maximum(most, load(mine + at));
        most = broadcast(max_of(most));
        for (std::int64_t at = 0; at < count; at += LANES) {
            Vector weight = exponential(load(mine + at) - most);
            if (count - at < LANES) weight = keep_first(weight, count - at);
            sum = sum + weight;
            save(mine + at, weight);
        }
        whole[head] = broadcast(sum_of(sum));
    }
    mix<HEADS, PARTS>(values, columns, count, scores, apart, whole, result);
}

using Attend = void (*)(const float*, const float*, const float*, const std::int32_t*, std::int64_t, float, float*,
                        std::int64_t, Operand*);

// How many heads are computed together, and the functions for that many and for one.
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

// Working memory of a call, shared by its threads.
struct Buffers {
    std::int64_t heads_width, group, most_features;
    bf16 *joint, *middle;
    Operand *joined, *normed, *mixed, *gated;
    float *queries, *scores;
    std::int64_t columns;  // of scores
    Seen seen;
    std::int16_t* numbers;  // of all threads
    float* steps;

    IntegerMemory integer_memory(std::int64_t rows) const {
        const std::int64_t thread = omp_get_thread_num();
        return {numbers + thread * rows * most_features, steps + thread * rows * Inputs<Int8Pair>::count(most_features)};
    }

    // The most features that a matrix with weights of eight bits has.
    static std::int64_t most_features_of(const Frame& frame, const Layer& layer) {
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
        const std::int64_t group = layer.heads / layer.kv_heads * layer.dim;
        const std::int64_t integers = most_features_of(frame, layer);
        const std::int64_t row = integers * sizeof(std::int16_t) + Inputs<Int8Pair>::count(integers) * sizeof(float);
        return 1024 + work.threads * work.rows * row + work.rows * (narrow * sizeof(bf16) + read * sizeof(Operand)) +
               work.threads * (of_scores(layer, work) + group) * sizeof(float) +
               ((work.visible ? work.rows : 1) * all + work.rows + LANES) * sizeof(std::int32_t);
    }

    Buffers(const Frame& frame, const Layer& layer, const Work& work, Scratch& scratch) {
        const std::int64_t rows = work.rows, hidden = layer.joint.features, all = work.start + rows;
        heads_width = layer.joint.outs, group = layer.heads / layer.kv_heads;
        columns = of_scores(layer, work);
        joined = scratch.take<Operand>(rows * frame.fuse.features);
        normed = scratch.take<Operand>(rows * hidden);
        middle = scratch.take<bf16>(rows * hidden);
        joint = scratch.take<bf16>(rows * heads_width);
        mixed = scratch.take<Operand>(rows * layer.output.features);
        gated = scratch.take<Operand>(rows * layer.down.features);
        scores = scratch.take<float>(work.threads * columns);
        queries = scratch.take<float>(work.threads * group * layer.dim);
        most_features = most_features_of(frame, layer);
        numbers = scratch.take<std::int16_t>(work.threads * rows * most_features);
        steps = scratch.take<float>(work.threads * rows * Inputs<Int8Pair>::count(most_features));
        seen.all = all, seen.apart = work.visible != nullptr;
        seen.counts = scratch.take<std::int32_t>(rows);
        seen.columns = scratch.take<std::int32_t>((seen.apart ? rows : 1) * all + LANES);
    }
};

// Writes keys and values of this thread's rows to the cache.
void store_states(const Layer& layer, const Work& work, const Buffers& at, float* keys, float* values) {
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

// Lists the columns that this thread's rows see.
void list_columns(const Work& work, const Seen& seen) {
    const Share share(work.rows);
    for (std::int64_t row = share.first; row < share.last; ++row) {
        if (seen.apart) seen.list(work, row);
        else seen.counts[row] = static_cast<std::int32_t>(work.start + row + 1);
    }
    if (!seen.apart && omp_get_thread_num() == 0) seen.list(work, 0);
}

// Attention for this thread's part of rows and heads.
void attend_all(const Layer& layer, const Work& work, const Buffers& at, const float* all_keys, const float* all_values) {
    const Attention attention = attention_of(layer.dim);
    const std::int64_t dim = layer.dim, apart = at.columns / attention.heads;
    float* scores = at.scores + omp_get_thread_num() * at.columns;
    float* queries = at.queries + omp_get_thread_num() * at.group * dim;
    const std::int64_t steps = (at.group + attention.heads - 1) / attention.heads;
    const Share share(work.rows * layer.kv_heads * steps);
    for (std::int64_t number = share.first; number < share.last; ++number) {
        // Rows are the inner loop: they share keys and values that are in the cache.
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

// The norm of this thread's rows.
void norm_all(const bf16* stream, const bf16* weight, const Layer& layer, std::int64_t rows, Operand* result) {
    const std::int64_t hidden = layer.joint.features;
    const Share share(rows);
    for (std::int64_t row = share.first; row < share.last; ++row)
        norm(stream + row * hidden, weight, layer.epsilon, hidden, result + row * hidden);
}

// A linear layer whose rounded results are added to a stream.
void add_linear(const Operand* x, std::int64_t rows, const Matrix& matrix, IntegerMemory memory, const bf16* stream,
                bf16* result) {
    linear(x, rows, matrix, memory, [&](std::int64_t row, std::int64_t block, Vector value) {
        const std::int64_t place = row * matrix.outs + block * LANES;
        store(result + place, widened(stream + place) + rounded(value));
    });
}

constexpr bool IS_READ_AS_IS = std::is_same_v<Operand, bf16>;

// Converts `count` numbers, a multiple of LANES, to operands of a product.
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

// Waits for the other threads; the first thread measures the time.
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

// Stores 16 results, or fewer at the end of a row.
void store_block(bf16* row, std::int64_t outs, std::int64_t block, Vector value) {
    bf16* place = row + block * LANES;
    if (const std::int64_t left = outs - block * LANES; left >= LANES) {
        store(place, value);
    } else {
        bf16 results[LANES];
        store(results, value);
        std::copy(results, results + left, place);
    }
}

// A linear layer for some rows.
void linear_part(const Matrix& matrix, const bf16* x, bf16* result, std::int64_t rows, std::int64_t threads) {
    const std::int64_t count = rows * matrix.features, steps = rows * Inputs<Int8Pair>::count(matrix.features);
    const std::int64_t bytes = matrix.steps ? threads * (count * sizeof(std::int16_t) + steps * sizeof(float)) : 0;
    Scratch scratch(256 + (IS_READ_AS_IS ? 0 : count * sizeof(Operand)) + bytes);
    const Operand* inputs = operands(x, count, scratch);
    auto* numbers = scratch.take<std::int16_t>(bytes ? threads * count : 0);
    auto* all_steps = scratch.take<float>(bytes ? threads * steps : 0);
#pragma omp parallel num_threads(threads)
    {
        const std::int64_t thread = bytes ? omp_get_thread_num() : 0;
        linear(inputs, rows, matrix, {numbers + thread * count, all_steps + thread * steps},
               [&](std::int64_t row, std::int64_t block, Vector value) {
                   store_block(result + row * matrix.outs, matrix.outs, block, value);
               });
    }
}

enum Part { LINEARS, ATTENTION, REST };

// Computes the layers' input.
void first_stream(const Frame& frame, const Work& work, const Buffers& at, std::int64_t hidden, Clock& clock) {
    const Share share(work.rows);
    for (std::int64_t row = share.first; row < share.last; ++row) {
        const bf16* embedding = frame.table + work.tokens[row] * hidden;
        if (!work.features) {
            std::copy(embedding, embedding + hidden, work.stream + row * hidden);
            continue;
        }
        Operand* joined = at.joined + row * frame.fuse.features;
        norm(embedding, frame.token_norm, frame.epsilon, hidden, joined);
        norm(work.features + row * hidden, frame.feature_norm, frame.epsilon, hidden, joined + hidden);
    }
    clock.wait(REST);
    if (!work.features) return;
    const IntegerMemory memory = at.integer_memory(work.rows);
    linear(at.joined, work.rows, frame.fuse, memory, [&](std::int64_t row, std::int64_t block, Vector value) {
        store(work.stream + row * hidden + block * LANES, value);
    });
    clock.wait(LINEARS);
}

// Computes the last norm of all rows, and the logits of the last ones.
void last_results(const Frame& frame, const Work& work, const Buffers& at, std::int64_t hidden, const bf16* stream,
                  Clock& clock) {
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
    const IntegerMemory memory = at.integer_memory(work.rows);
    linear(kept, work.kept, frame.head, memory, [&](std::int64_t row, std::int64_t block, Vector value) {
        store_block(work.logits + row * frame.head.outs, frame.head.outs, block, value);
    });
    clock.wait(LINEARS);
}

// A forward of a text's rows, or of a part of them. The part's results are `behind` numbers after the start of `results`.
void run_part(const Frame& frame, const Layer* const* layers, Work& work, std::int64_t behind) {
    Scratch scratch(Buffers::bytes(frame, *layers[0], work));
    const Buffers at(frame, *layers[0], work, scratch);
    const std::int64_t rows = work.rows, hidden = layers[0]->joint.features;
#pragma omp parallel num_threads(work.threads)
    {
        Clock clock(work);
        const IntegerMemory memory = at.integer_memory(rows);
        list_columns(work, at.seen);
        first_stream(frame, work, at, hidden, clock);
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
            store_states(layer, work, at, keys, values);
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
        last_results(frame, work, at, hidden, stream, clock);
    }
}

}  // namespace

extern "C" {

void specgym_linear(const Matrix* matrix, const bf16* x, bf16* result, std::int64_t rows, std::int64_t threads) {
    for (std::int64_t done = 0; done < rows; done += MOST_ROWS)
        linear_part(*matrix, x + done * matrix->features, result + done * matrix->outs, std::min(MOST_ROWS, rows - done),
                    threads);
}

// A model's forward; all layers have one shape. A long text is read part by part, so that working memory stays small.
// Returns -1, or the first row whose token the table does not have; then nothing is computed.
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
