// What choosing a token takes for every token of the vocabulary; see choosing.py for who calls it.
//
// In plain C++ that compilers turn into vector instructions: loops over lanes of which none depends on another.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

constexpr std::int64_t LANES = 64;

std::uint32_t mix(std::uint32_t bits) {  // Wellons, "lowbias32"
    bits = (bits ^ bits >> 16) * 0x7FEB352Du;
    bits = (bits ^ bits >> 15) * 0x846CA68Bu;
    return bits ^ bits >> 16;
}

// Of a positive, normal number: with x = 2^e m, m from 3/4 to 3/2, by the series of 2 artanh((m - 1) / (m + 1)).
inline double logarithm(double x) {
    std::int64_t bits;
    std::memcpy(&bits, &x, sizeof x);
    const std::int64_t power = (bits - 0x3FE8000000000000) >> 52, mantissa = bits - (power << 52);
    double m;
    std::memcpy(&m, &mantissa, sizeof m);
    const double s = (m - 1) / (m + 1), square = s * s;
    double sum = 1.0 / 25;
    for (int odd = 23; odd > 0; odd -= 2) sum = sum * square + 1.0 / odd;
    return static_cast<double>(power) * 0.693147180559945309417 + 2 * s * sum;
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
    std::int32_t token[LANES], strange[LANES];
};

// The best of a row with or without noise; NaN if there is one. Of equal ones the first.
template <class Logit, bool NOISY>
void best_of_row(const Logit* logits, const float* noise, std::int64_t vocabulary, float* value, std::int64_t* token) {
    Best best;
    for (std::int64_t lane = 0; lane < LANES; ++lane)
        best.value[lane] = -std::numeric_limits<float>::infinity(), best.token[lane] = static_cast<std::int32_t>(lane),
        best.strange[lane] = 0;
    const std::int64_t whole = vocabulary / LANES * LANES;
    const auto see = [&](std::int64_t first, std::int64_t lane) {
        const float plain = value_of(logits[first + lane]), now = NOISY ? plain + noise[first + lane] : plain;
        const bool more = now > best.value[lane];
        best.value[lane] = more ? now : best.value[lane];
        best.token[lane] = more ? static_cast<std::int32_t>(first + lane) : best.token[lane];
        best.strange[lane] |= now != now;
    };
    for (std::int64_t first = 0; first < whole; first += LANES)
        for (std::int64_t lane = 0; lane < LANES; ++lane) see(first, lane);
    for (std::int64_t lane = 0; lane < vocabulary - whole; ++lane) see(whole, lane);
    *value = best.value[0], *token = best.token[0];
    bool strange = false;
    for (std::int64_t lane = 0; lane < std::min(LANES, vocabulary); ++lane) {
        strange |= best.strange[lane] != 0;
        if (best.value[lane] > *value || (best.value[lane] == *value && best.token[lane] < *token))
            *value = best.value[lane], *token = best.token[lane];
    }
    if (strange) *value = std::numeric_limits<float>::quiet_NaN();
}

template <class Logit>
void best_of_rows(const Logit* logits, const float* const* noise, std::int64_t rows, std::int64_t vocabulary,
                  float* values, std::int64_t* tokens) {
    for (std::int64_t row = 0; row < rows; ++row) {
        const Logit* mine = logits + row * vocabulary;
        if (noise) best_of_row<Logit, true>(mine, noise[row], vocabulary, values + row, tokens + row);
        else best_of_row<Logit, false>(mine, nullptr, vocabulary, values + row, tokens + row);
    }
}

}  // namespace

extern "C" {

// Standard Gumbel noise of every token, from two keys.
void specgym_gumbel(std::uint32_t key, std::uint32_t second, std::int64_t vocabulary, std::int64_t threads, float* noise) {
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (std::int64_t token = 0; token < vocabulary; ++token) {
        const std::uint32_t bits = mix(mix(static_cast<std::uint32_t>(token) ^ key) ^ second);
        // The middle of one of 2^32 cells of (0, 1), the first of which is that of the lowest signed number.
        const double uniform = (static_cast<double>(static_cast<std::int32_t>(bits)) + 2147483648.5) * 0x1p-32;
        noise[token] = static_cast<float>(-logarithm(-logarithm(uniform)));
    }
}

// The best token of each row and its score: the logit, with the row's noise if there is some.
void specgym_best_bfloat16(const std::uint16_t* logits, const float* const* noise, std::int64_t rows,
                           std::int64_t vocabulary, float* values, std::int64_t* tokens) {
    best_of_rows(logits, noise, rows, vocabulary, values, tokens);
}

void specgym_best_float32(const float* logits, const float* const* noise, std::int64_t rows, std::int64_t vocabulary,
                          float* values, std::int64_t* tokens) {
    best_of_rows(logits, noise, rows, vocabulary, values, tokens);
}
}
