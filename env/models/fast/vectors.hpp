// Vectors of sixteen float32 and products of bfloat16, in two versions with the same functions: AVX-512 BF16 and AVX2.
//
// AVX-512 BF16 multiplies pairs of bfloat16. AVX2 has no bfloat16: there, inputs are float32 numbers that bfloat16 can
// hold, and weights are widened to float32 when they are loaded.
//
// Weights of eight bits are multiplied as integers with inputs of sixteen bits. The sums of their products are exact.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

using bf16 = std::uint16_t;

// The weights of two neighbouring features for one result, which are multiplied at once.
struct Bf16Pair {
    bf16 two[2];
};
struct Int8Pair {
    std::int8_t two[2];
};

constexpr std::int64_t LANES = 16;  // float32 in a vector, and results in a block of weights

#ifdef __AVX512BF16__

constexpr int SUMS = 24;        // vectors of sums that fit into the registers, besides operands
constexpr int MIXED_PARTS = 8;  // vectors of a head's values that are summed at once
constexpr int heads_together(int parts) { return parts <= 2 ? 4 : parts <= 4 ? 3 : 2; }

// How many pairs of features ahead weights are prefetched for this number of rows, as measured. With few products per
// weight the processor does not prefetch early enough by itself.
constexpr int prefetch_distance(int rows) { return rows <= 2 ? 48 : 0; }

using Vector = __m512;
using Integers = __m512i;
using Operand = bf16;  // type of a product's inputs

inline Vector zero() { return _mm512_setzero_ps(); }
inline Vector broadcast(float value) { return _mm512_set1_ps(value); }
inline Integers zero_integers() { return _mm512_setzero_si512(); }
inline Vector to_floats(Integers value) { return _mm512_cvtepi32_ps(value); }
inline Vector load(const float* from) { return _mm512_loadu_ps(from); }
inline void save(float* to, Vector value) { _mm512_storeu_ps(to, value); }
inline Vector maximum(Vector one, Vector other) { return _mm512_max_ps(one, other); }
inline Vector minimum(Vector one, Vector other) { return _mm512_min_ps(one, other); }
inline Vector fused_add(Vector one, Vector other, Vector more) { return _mm512_fmadd_ps(one, other, more); }
inline Vector fused_subtract(Vector one, Vector other, Vector from) { return _mm512_fnmadd_ps(one, other, from); }
inline float sum_of(Vector value) { return _mm512_reduce_add_ps(value); }
inline float max_of(Vector value) { return _mm512_reduce_max_ps(value); }

// Keeps the first `count` numbers and sets the others to zero.
inline Vector keep_first(Vector value, std::int64_t count) {
    return _mm512_maskz_mov_ps(static_cast<__mmask16>((1u << count) - 1), value);
}

inline Vector widen(__m256i half) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)); }
inline __m256i narrow(Vector value) { return (__m256i)_mm512_cvtneps_pbh(value); }

// The nearest integers, and multiplication by 2 to their power.
inline Vector round_to_integer(Vector value) { return _mm512_roundscale_ps(value, _MM_FROUND_TO_NEAREST_INT); }
inline Vector scale_by_power(Vector value, Vector power) { return _mm512_scalef_ps(value, power); }

// Adds the products of x, [rows, features], and WIDTH blocks of weights to `sum`, for the given pairs of features.
// `fetch(pair)` is called in between.
template <int ROWS, int WIDTH, class Fetch>
inline void add_products(const Operand* x, std::int64_t features, const Bf16Pair* const (&weights)[WIDTH],
                         std::int64_t first, std::int64_t last, Vector (&sum)[ROWS][WIDTH], Fetch fetch) {
    for (std::int64_t pair = first; pair < last; ++pair) {
        __m512bh weight[WIDTH];
        for (int block = 0; block < WIDTH; ++block)
            weight[block] = (__m512bh)_mm512_loadu_si512(weights[block] + pair * LANES);
        fetch(pair);
        for (int row = 0; row < ROWS; ++row) {
            const auto* input = reinterpret_cast<const std::int32_t*>(x + row * features) + pair;
            const auto two = (__m512bh)_mm512_set1_epi32(*input);
            for (int block = 0; block < WIDTH; ++block)
                sum[row][block] = _mm512_dpbf16_ps(sum[row][block], two, weight[block]);
        }
    }
}

inline __m512i add_pairs(__m512i sum, __m512i one, __m512i other) {
#ifdef __AVX512VNNI__
    return _mm512_dpwssd_epi32(sum, one, other);
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(one, other));
#endif
}

template <int ROWS, int WIDTH, class Fetch>
inline void add_products(const std::int16_t* x, std::int64_t features, const Int8Pair* const (&weights)[WIDTH],
                         std::int64_t first, std::int64_t last, Integers (&sum)[ROWS][WIDTH], Fetch fetch) {
    for (std::int64_t line = first; line < last; line += 2) {  // a cache line holds two pairs
        fetch(line);
        for (std::int64_t pair = line; pair < line + 2; ++pair) {
            __m512i weight[WIDTH];
            for (int block = 0; block < WIDTH; ++block) {
                const auto* from = reinterpret_cast<const __m256i*>(weights[block] + pair * LANES);
                weight[block] = _mm512_cvtepi8_epi16(_mm256_loadu_si256(from));
            }
            for (int row = 0; row < ROWS; ++row) {
                const auto* input = reinterpret_cast<const std::int32_t*>(x + row * features) + pair;
                const __m512i two = _mm512_set1_epi32(*input);
                for (int block = 0; block < WIDTH; ++block) sum[row][block] = add_pairs(sum[row][block], weight[block], two);
            }
        }
    }
}

// Rounds to integers of sixteen bits; the values fit.
inline __m256i to_int16(Vector value) { return _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(value)); }

#elif defined(__AVX2__) && defined(__FMA__)

constexpr int SUMS = 6;
constexpr int MIXED_PARTS = 2;
constexpr int heads_together(int) { return 3; }
constexpr int prefetch_distance(int rows) { return rows > 1 ? 48 : 0; }

struct Vector {
    __m256 low, high;
};
// Not __m256i: that type may alias anything, so compilers would keep sums in memory.
typedef std::int32_t Eight __attribute__((vector_size(32)));
struct Integers {
    Eight low, high;
};
using Operand = float;

inline Vector operator+(Vector one, Vector other) { return {one.low + other.low, one.high + other.high}; }
inline Vector operator-(Vector one, Vector other) { return {one.low - other.low, one.high - other.high}; }
inline Vector operator*(Vector one, Vector other) { return {one.low * other.low, one.high * other.high}; }
inline Vector operator/(Vector one, Vector other) { return {one.low / other.low, one.high / other.high}; }

inline Vector zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Vector broadcast(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Integers zero_integers() { return {Eight{}, Eight{}}; }
inline Vector to_floats(Integers value) {
    return {_mm256_cvtepi32_ps((__m256i)value.low), _mm256_cvtepi32_ps((__m256i)value.high)};
}
inline Vector load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void save(float* to, Vector value) {
    _mm256_storeu_ps(to, value.low);
    _mm256_storeu_ps(to + 8, value.high);
}
inline Vector maximum(Vector one, Vector other) {
    return {_mm256_max_ps(one.low, other.low), _mm256_max_ps(one.high, other.high)};
}
inline Vector minimum(Vector one, Vector other) {
    return {_mm256_min_ps(one.low, other.low), _mm256_min_ps(one.high, other.high)};
}
inline Vector fused_add(Vector one, Vector other, Vector more) {
    return {_mm256_fmadd_ps(one.low, other.low, more.low), _mm256_fmadd_ps(one.high, other.high, more.high)};
}
inline Vector fused_subtract(Vector one, Vector other, Vector from) {
    return {_mm256_fnmadd_ps(one.low, other.low, from.low), _mm256_fnmadd_ps(one.high, other.high, from.high)};
}
inline float sum_of(Vector value) {
    const __m256 eight = value.low + value.high;
    const __m128 four = _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
    const __m128 two = four + _mm_movehl_ps(four, four);
    return _mm_cvtss_f32(two + _mm_movehdup_ps(two));
}
inline float max_of(Vector value) {
    float numbers[LANES];
    save(numbers, value);
    return *std::max_element(numbers, numbers + LANES);
}
inline Vector keep_first(Vector value, std::int64_t count) {
    float numbers[LANES];
    save(numbers, value);
    std::fill(numbers + count, numbers + LANES, 0.0f);
    return load(numbers);
}

inline __m256 widen(__m128i half) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16)); }
inline Vector widen(__m256i half) { return {widen(_mm256_castsi256_si128(half)), widen(_mm256_extracti128_si256(half, 1))}; }

// Rounds to the nearest bfloat16, ties to even; NaN stays NaN.
inline __m256i narrow(__m256 value) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i near = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i none = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i unordered = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(near, none, unordered), 16);
}
inline __m256i narrow(Vector value) {
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(narrow(value.low), narrow(value.high)), 0xd8);
}

inline Vector round_to_integer(Vector value) {
    constexpr int to = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(value.low, to), _mm256_round_ps(value.high, to)};
}
inline __m256 scale_by_power(__m256 value, __m256 power) {  // exponential() keeps the power in float32's range
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127));
    return value * _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
inline Vector scale_by_power(Vector value, Vector power) {
    return {scale_by_power(value.low, power.low), scale_by_power(value.high, power.high)};
}

template <int ROWS, int WIDTH, class Fetch>
inline void add_products(const Operand* x, std::int64_t features, const Bf16Pair* const (&weights)[WIDTH],
                         std::int64_t first, std::int64_t last, Vector (&sum)[ROWS][WIDTH], Fetch fetch) {
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    for (std::int64_t pair = first; pair < last; ++pair) {
        fetch(pair);
        for (int block = 0; block < WIDTH; ++block) {
            const auto* both = reinterpret_cast<const __m256i*>(weights[block] + pair * LANES);
            const __m256i low = _mm256_loadu_si256(both), high = _mm256_loadu_si256(both + 1);
            const Vector even{_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
                              _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
            for (int row = 0; row < ROWS; ++row)
                sum[row][block] = fused_add(even, broadcast(x[row * features + 2 * pair]), sum[row][block]);
            const Vector odd{_mm256_castsi256_ps(_mm256_and_si256(low, upper)),
                             _mm256_castsi256_ps(_mm256_and_si256(high, upper))};
            for (int row = 0; row < ROWS; ++row)
                sum[row][block] = fused_add(odd, broadcast(x[row * features + 2 * pair + 1]), sum[row][block]);
        }
    }
}

template <int ROWS, int WIDTH, class Fetch>
inline void add_products(const std::int16_t* x, std::int64_t features, const Int8Pair* const (&weights)[WIDTH],
                         std::int64_t first, std::int64_t last, Integers (&sum)[ROWS][WIDTH], Fetch fetch) {
    for (std::int64_t line = first; line < last; line += 2) {  // a cache line holds two pairs
        fetch(line);
        for (std::int64_t pair = line; pair < line + 2; ++pair) {
            for (int block = 0; block < WIDTH; ++block) {
                const auto* both = reinterpret_cast<const __m128i*>(weights[block] + pair * LANES);
                const __m256i low = _mm256_cvtepi8_epi16(_mm_loadu_si128(both));
                const __m256i high = _mm256_cvtepi8_epi16(_mm_loadu_si128(both + 1));
                for (int row = 0; row < ROWS; ++row) {
                    const auto* input = reinterpret_cast<const std::int32_t*>(x + row * features) + pair;
                    const __m256i two = _mm256_set1_epi32(*input);
                    Integers& mine = sum[row][block];
                    mine.low += (Eight)_mm256_madd_epi16(low, two);
                    mine.high += (Eight)_mm256_madd_epi16(high, two);
                }
            }
        }
    }
}

inline __m256i to_int16(Vector value) {
    const __m256i both = _mm256_packs_epi32(_mm256_cvtps_epi32(value.low), _mm256_cvtps_epi32(value.high));
    return _mm256_permute4x64_epi64(both, 0xd8);
}

#else
#error "this machine has neither AVX-512 BF16 nor AVX2 with FMA"
#endif

// Transposes 8 x 8 numbers of four bytes. Rows are `from_apart` numbers apart, and `to_apart` where they are written.
inline void transpose(const std::int32_t* from, std::int64_t from_apart, std::int32_t* to, std::int64_t to_apart) {
    __m256 row[8], two[8], four[8];
    for (int at = 0; at < 8; ++at) row[at] = _mm256_loadu_ps(reinterpret_cast<const float*>(from + at * from_apart));
    for (int at = 0; at < 8; at += 2) {
        two[at] = _mm256_unpacklo_ps(row[at], row[at + 1]);
        two[at + 1] = _mm256_unpackhi_ps(row[at], row[at + 1]);
    }
    for (int at = 0; at < 8; at += 4) {
        four[at] = _mm256_shuffle_ps(two[at], two[at + 2], 0x44);
        four[at + 1] = _mm256_shuffle_ps(two[at], two[at + 2], 0xee);
        four[at + 2] = _mm256_shuffle_ps(two[at + 1], two[at + 3], 0x44);
        four[at + 3] = _mm256_shuffle_ps(two[at + 1], two[at + 3], 0xee);
    }
    for (int at = 0; at < 4; ++at) {
        _mm256_storeu_ps(reinterpret_cast<float*>(to + at * to_apart), _mm256_permute2f128_ps(four[at], four[at + 4], 0x20));
        _mm256_storeu_ps(reinterpret_cast<float*>(to + (at + 4) * to_apart),
                         _mm256_permute2f128_ps(four[at], four[at + 4], 0x31));
    }
}

// Brings pairs of features of rows, [count, features], into the order [pairs, 16]. The number of pairs is a multiple of 8.
// The last row stands for those that are missing.
inline void order_pairs(const bf16* rows, std::int64_t count, std::int64_t features, std::int64_t first, std::int64_t last,
                        Bf16Pair* ordered) {
    const auto* from = reinterpret_cast<const std::int32_t*>(rows);
    auto* to = reinterpret_cast<std::int32_t*>(ordered);
    for (std::int64_t pair = first; pair < last; pair += 8) {
        if (count == LANES) {
            for (int row = 0; row < LANES; row += 8)
                transpose(from + row * features / 2 + pair, features / 2, to + (pair - first) * LANES + row, LANES);
            continue;
        }
        for (int at = 0; at < 8 * LANES; ++at)
            to[(pair - first) * LANES + at] = from[std::min(at % LANES, count - 1) * features / 2 + pair + at / LANES];
    }
}

inline Vector magnitude(Vector value) { return maximum(value, zero() - value); }

inline Vector widened(const float* from) { return load(from); }
inline Vector widened(const bf16* from) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }

// Rounds to bfloat16.
inline Vector rounded(Vector value) { return widen(narrow(value)); }

inline void store(bf16* to, Vector value) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(value)); }
inline void store(float* to, Vector value) { save(to, rounded(value)); }

// exp(x), by a polynomial on [-log(2) / 2, log(2) / 2] (Cephes).
inline Vector exponential(Vector x) {
    x = minimum(broadcast(88.0f), maximum(broadcast(-87.0f), x));  // in this order NaN stays NaN
    const Vector power = round_to_integer(x * broadcast(1.44269504f));
    Vector rest = fused_subtract(power, broadcast(0.693359375f), x);
    rest = fused_subtract(power, broadcast(-2.12194440e-4f), rest);
    Vector sum = broadcast(1.9875691500e-4f);
    for (const float factor : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        sum = fused_add(sum, rest, broadcast(factor));
    sum = fused_add(sum, rest * rest, rest + broadcast(1.0f));
    return scale_by_power(sum, power);
}
