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

// By a polynomial on [-log(2) / 2, log(2) / 2] (Cephes), for x <= 0; of NaN, NaN.
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    const float power = std::nearbyint(x * 1.44269504f);
    const float rest = x - power * 0.693359375f + power * 2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    for (const float factor : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        sum = sum * rest + factor;
    sum = sum * rest * rest + rest + 1.0f;
    const std::int32_t bits = (static_cast<std::int32_t>(power) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return sum * scale;
}

// log(sum(exp(scores))); NaN if there is one.
float log_sum(const float* scores, std::int64_t width, float most) {
    float sums[LANES] = {};
    const std::int64_t whole = width / LANES * LANES;
    for (std::int64_t first = 0; first < whole; first += LANES)
        for (std::int64_t lane = 0; lane < LANES; ++lane) sums[lane] += exponential(scores[first + lane] - most);
    for (std::int64_t lane = 0; lane < width - whole; ++lane) sums[lane] += exponential(scores[whole + lane] - most);
    double sum = 0;
    for (const float part : sums) sum += part;
    return static_cast<float>(std::log(sum)) + most;
}

// The `count` best of a row, best first; of equal ones the first.
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

template <class Logit>
void rank_rows(const Logit* logits, const float* const* noise, const std::int64_t* tokens, std::int64_t rows,
               std::int64_t width, std::int64_t count, float* scores, float* values, std::int64_t* numbers) {
    for (std::int64_t row = 0; row < rows; ++row, logits += width, values += count, numbers += count) {
        if (!noise)
            for (std::int64_t number = 0; number < width; ++number) scores[number] = value_of(logits[number]);
        else if (!tokens)
            for (std::int64_t number = 0; number < width; ++number)
                scores[number] = value_of(logits[number]) + noise[row][number];
        else
            for (std::int64_t number = 0; number < width; ++number)
                scores[number] = value_of(logits[number]) + noise[row][tokens[number]];
        take_best(scores, width, count, values, numbers);
        const float whole = log_sum(scores, width, values[0]);
        for (std::int64_t place = 0; place < count; ++place) values[place] -= whole;
    }
}

// A log-probability as it is told: the nearest bfloat16, and of that the nearest number of half precision.
double rounded(float value) {
    if (value != value) return value;
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits = (bits + 0x7FFFu + (bits >> 16 & 1)) & 0xFFFF0000u;
    std::memcpy(&value, &bits, sizeof value);
    if (std::abs(value) >= 65520) return std::copysign(std::numeric_limits<double>::infinity(), value);
    return std::abs(value) < 0x1p-14f ? std::nearbyint(value * 0x1p24) * 0x1p-24 : value;  // the rest has bits enough
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

// The `count` likeliest of each row and their log-probabilities under the softmax of the scores: the logits, with the
// row's noise if there is some, of the tokens that the logits are for. `scores` is working memory for a row.
void specgym_rank_bfloat16(const std::uint16_t* logits, const float* const* noise, const std::int64_t* tokens,
                           std::int64_t rows, std::int64_t width, std::int64_t count, float* scores, float* values,
                           std::int64_t* numbers) {
    rank_rows(logits, noise, tokens, rows, width, count, scores, values, numbers);
}

void specgym_rank_float32(const float* logits, const float* const* noise, const std::int64_t* tokens, std::int64_t rows,
                          std::int64_t width, std::int64_t count, float* scores, float* values, std::int64_t* numbers) {
    rank_rows(logits, noise, tokens, rows, width, count, scores, values, numbers);
}

// The first `kept` of each row's `count` log-probabilities and entries as they are told: rounded, and as tokens. NaN may
// come with entries that are none.
void specgym_told(const float* values, const std::int64_t* entries, const std::int64_t* tokens, std::int64_t rows,
                  std::int64_t count, std::int64_t kept, double* told, std::int64_t* ids) {
    for (std::int64_t row = 0; row < rows; ++row)
        for (std::int64_t place = row * count; place < row * count + kept; ++place) {
            *told++ = rounded(values[place]);
            *ids++ = !tokens || values[place] != values[place] ? entries[place] : tokens[entries[place]];
        }
}
}
