// Sixteen float32 at a time, and the products of bfloat16 made of them: by AVX-512 BF16, or by AVX2.
//
// Both have the same functions. They differ in what is multiplied: AVX-512 BF16 multiplies bfloat16 pairwise; AVX2 has no
// bfloat16, so inputs are kept as float32 numbers that bfloat16 can hold, and weights are widened on the way.
//
// Weights of eight bits are multiplied as whole numbers, with inputs of sixteen: their products are added up exactly.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

using bf16 = std::uint16_t;

// Two features of a result's weights, which is what is multiplied at a time: of bfloat16, or of eight bits.
struct Halves {
    bf16 two[2];
};
struct Eighths {
    std::int8_t two[2];
};

constexpr std::int64_t LANES = 16;  // float32 in a vector: results of a block of weights

#ifdef __AVX512BF16__

constexpr int SUMS = 24;        // vectors of sums that the registers hold beside what is multiplied
constexpr int MIXED_PARTS = 8;  // vectors of a head's values that are summed up together
constexpr int heads_together(int parts) { return parts <= 2 ? 4 : parts <= 4 ? 3 : 2; }

// Pairs of features ahead of which weights are fetched for so few rows that they are read once, as measured: with little
// to multiply the processor does not see by itself what comes next.
constexpr int ahead_of(int rows) { return rows <= 2 ? 48 : 0; }

using Vector = __m512;
using Integers = __m512i;
using Operand = bf16;  // an input of a product

inline Vector zero() { return _mm512_setzero_ps(); }
inline Vector spread(float value) { return _mm512_set1_ps(value); }
inline Integers no_integers() { return _mm512_setzero_si512(); }
inline Vector floats(Integers value) { return _mm512_cvtepi32_ps(value); }
inline Vector load(const float* from) { return _mm512_loadu_ps(from); }
inline void save(float* to, Vector value) { _mm512_storeu_ps(to, value); }
inline Vector greatest(Vector one, Vector other) { return _mm512_max_ps(one, other); }
inline Vector least(Vector one, Vector other) { return _mm512_min_ps(one, other); }
inline Vector fused(Vector one, Vector other, Vector more) { return _mm512_fmadd_ps(one, other, more); }
inline Vector fused_less(Vector one, Vector other, Vector from) { return _mm512_fnmadd_ps(one, other, from); }
inline float sum_of(Vector value) { return _mm512_reduce_add_ps(value); }
inline float most_of(Vector value) { return _mm512_reduce_max_ps(value); }

// The first `count` of the numbers, and zeros.
inline Vector first_of(Vector value, std::int64_t count) {
    return _mm512_maskz_mov_ps(static_cast<__mmask16>((1u << count) - 1), value);
}

inline Vector widen(__m256i half) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)); }
inline __m256i narrow(Vector value) { return (__m256i)_mm512_cvtneps_pbh(value); }

// Nearest whole numbers, and 2 to their power.
inline Vector nearest(Vector value) { return _mm512_roundscale_ps(value, _MM_FROUND_TO_NEAREST_INT); }
inline Vector scaled(Vector value, Vector power) { return _mm512_scalef_ps(value, power); }

// Adds pairs of features, [rows, features] from `x` on, times WIDTH blocks of weights to `sum`; `fetch(pair)` goes between.
template <int ROWS, int WIDTH, class Fetch>
inline void add_products(const Operand* x, std::int64_t features, const Halves* const (&weights)[WIDTH],
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
inline void add_products(const std::int16_t* x, std::int64_t features, const Eighths* const (&weights)[WIDTH],
                         std::int64_t first, std::int64_t last, Integers (&sum)[ROWS][WIDTH], Fetch fetch) {
    for (std::int64_t line = first; line < last; line += 2) {  // two pairs lie in a line of the cache
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

// To the nearest whole numbers, of which sixteen bits hold all.
inline __m256i whole(Vector value) { return _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(value)); }

#elif defined(__AVX2__) && defined(__FMA__)

constexpr int SUMS = 6;
constexpr int MIXED_PARTS = 2;
constexpr int heads_together(int) { return 3; }
constexpr int ahead_of(int rows) { return rows > 1 ? 48 : 0; }

struct Vector {
    __m256 low, high;
};
// Not of __m256i, which may stand for anything in memory: compilers would keep sums there.
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
inline Vector spread(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Integers no_integers() { return {Eight{}, Eight{}}; }
inline Vector floats(Integers value) {
    return {_mm256_cvtepi32_ps((__m256i)value.low), _mm256_cvtepi32_ps((__m256i)value.high)};
}
inline Vector load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void save(float* to, Vector value) {
    _mm256_storeu_ps(to, value.low);
    _mm256_storeu_ps(to + 8, value.high);
}
inline Vector greatest(Vector one, Vector other) {
    return {_mm256_max_ps(one.low, other.low), _mm256_max_ps(one.high, other.high)};
}
inline Vector least(Vector one, Vector other) {
    return {_mm256_min_ps(one.low, other.low), _mm256_min_ps(one.high, other.high)};
}
inline Vector fused(Vector one, Vector other, Vector more) {
    return {_mm256_fmadd_ps(one.low, other.low, more.low), _mm256_fmadd_ps(one.high, other.high, more.high)};
}
inline Vector fused_less(Vector one, Vector other, Vector from) {
    return {_mm256_fnmadd_ps(one.low, other.low, from.low), _mm256_fnmadd_ps(one.high, other.high, from.high)};
}
inline float sum_of(Vector value) {
    const __m256 eight = value.low + value.high;
    const __m128 four = _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
    const __m128 two = four + _mm_movehl_ps(four, four);
    return _mm_cvtss_f32(two + _mm_movehdup_ps(two));
}
inline float most_of(Vector value) {
    float each[LANES];
    save(each, value);
    return *std::max_element(each, each + LANES);
}
inline Vector first_of(Vector value, std::int64_t count) {
    float each[LANES];
    save(each, value);
    std::fill(each + count, each + LANES, 0.0f);
    return load(each);
}

inline __m256 widen(__m128i half) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16)); }
inline Vector widen(__m256i half) { return {widen(_mm256_castsi256_si128(half)), widen(_mm256_extracti128_si256(half, 1))}; }

// To the nearest bfloat16, of two as near to the even one; what is no number stays none.
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

inline Vector nearest(Vector value) {
    constexpr int to = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(value.low, to), _mm256_round_ps(value.high, to)};
}
inline __m256 scaled(__m256 value, __m256 power) {  // of powers that float32 has, which exponential() sees to
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127));
    return value * _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
inline Vector scaled(Vector value, Vector power) { return {scaled(value.low, power.low), scaled(value.high, power.high)}; }

template <int ROWS, int WIDTH, class Fetch>
inline void add_products(const Operand* x, std::int64_t features, const Halves* const (&weights)[WIDTH],
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
                sum[row][block] = fused(even, spread(x[row * features + 2 * pair]), sum[row][block]);
            const Vector odd{_mm256_castsi256_ps(_mm256_and_si256(low, upper)),
                             _mm256_castsi256_ps(_mm256_and_si256(high, upper))};
            for (int row = 0; row < ROWS; ++row)
                sum[row][block] = fused(odd, spread(x[row * features + 2 * pair + 1]), sum[row][block]);
        }
    }
}

template <int ROWS, int WIDTH, class Fetch>
inline void add_products(const std::int16_t* x, std::int64_t features, const Eighths* const (&weights)[WIDTH],
                         std::int64_t first, std::int64_t last, Integers (&sum)[ROWS][WIDTH], Fetch fetch) {
    for (std::int64_t line = first; line < last; line += 2) {  // two pairs lie in a line of the cache
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

inline __m256i whole(Vector value) {
    const __m256i both = _mm256_packs_epi32(_mm256_cvtps_epi32(value.low), _mm256_cvtps_epi32(value.high));
    return _mm256_permute4x64_epi64(both, 0xd8);
}

#else
#error "this machine has neither AVX-512 BF16 nor AVX2 with FMA"
#endif

inline Vector magnitude(Vector value) { return greatest(value, zero() - value); }

inline Vector widened(const float* from) { return load(from); }
inline Vector widened(const bf16* from) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }

// As bfloat16 has it.
inline Vector rounded(Vector value) { return widen(narrow(value)); }

inline void store(bf16* to, Vector value) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(value)); }
inline void store(float* to, Vector value) { save(to, rounded(value)); }

// By a polynomial on [-log(2) / 2, log(2) / 2] (Cephes).
inline Vector exponential(Vector x) {
    x = least(spread(88.0f), greatest(spread(-87.0f), x));  // in this order NaN stays NaN
    const Vector power = nearest(x * spread(1.44269504f));
    Vector rest = fused_less(power, spread(0.693359375f), x);
    rest = fused_less(power, spread(-2.12194440e-4f), rest);
    Vector sum = spread(1.9875691500e-4f);
    for (const float factor : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        sum = fused(sum, rest, spread(factor));
    sum = fused(sum, rest * rest, rest + spread(1.0f));
    return scaled(sum, power);
}
