// y = W x + b for packed W: panels of PANEL rows, a panel's columns one after the other. A panel is read once for as
// many as COLUMNS vectors x; for one vector the time is that of streaming W.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "team.h"
#include "vectors.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

// How the bytes of a panel lie: for VNNI, and for compilers to make what they can of it, QUAD columns of each row side by
// side, all with 128 added; or, where products of 16 bits are the widest, PAIR columns of two rows, 16 apart, one of them
// with 128 added in the low byte of a word, the other as it is in the high byte.
#if defined(__AVX512VNNI__) || !defined(__AVX2__)
constexpr bool WORDS = false;
#else
constexpr bool WORDS = true;
#endif
constexpr int QUAD = 4, PAIR = 2;

struct Linear {
    const void* weights;  // (rows / PANEL, columns, PANEL) floats; or bytes of integers
    const void* fine;     // null, or of integers in 16 bits the low bytes: 256 (weights - 128) + (fine - 128)
    const float* scales;  // (rows), of the integers; null: the weights are floats
    const float* bias;    // (rows), 0 in the padding
    int32_t rows;         // a multiple of PANEL
    int32_t columns;      // in 8 bits a multiple of 8
    int32_t inputs;       // values of x; at most columns
};

// Vectors as integers of up to 15 bits, so that what is lost lies in the weights alone. `most` keeps every sum within
// 32 bits: all instruction sets then give the same integers.
struct Quantised {
    std::vector<int16_t> values;      // (n, columns)
    std::vector<int8_t> high, low;    // values = 256 high + low, for VNNI
    std::vector<float> scales;        // (n)
    std::vector<int32_t> offsets;     // (n): 128 x the sum of the values, which the unsigned weights add
    int columns = 0;

    void resize(int n, int width) {
        columns = width;
        const size_t size = size_t(n) * width;
        if (values.size() < size) values.resize(size), high.resize(size), low.resize(size);
        if (scales.size() < size_t(n)) scales.resize(n), offsets.resize(n);
    }
    static int most(int width) { return std::min<int64_t>(16383, INT32_MAX / (128 * int64_t(width))); }

    void set(int i, const float* x, int inputs) {
        float peak = 0;
        for (int k = 0; k < inputs; k++) peak = std::max(peak, std::fabs(x[k]));
        const float most_here = float(most(columns));
        const float inverse = peak > 0 ? most_here / peak : 0;
        scales[i] = peak / most_here;
        int16_t* to = &values[size_t(i) * columns];
        int8_t *up = &high[size_t(i) * columns], *down = &low[size_t(i) * columns];
        int32_t total = 0;
        for (int k = 0; k < inputs; k++) {
            const int32_t value = int32_t((x[k] * inverse + ROUNDER) - ROUNDER);
            const int32_t above = (value + 128) >> 8;
            to[k] = int16_t(value), up[k] = int8_t(above), down[k] = int8_t(value - 256 * above);
            total += value;
        }
        for (int k = inputs; k < columns; k++) to[k] = 0, up[k] = 0, down[k] = 0;
        offsets[i] = 128 * total;  // wraps (-fwrapv), as the sums do
    }
};

// Sums over R of a panel's registers, from the first on.
template <int N, int R>
inline void registers_of_floats(const float* w, int columns, const float* x, size_t stride,
                                Floats (&sums)[N][REGISTERS], int first) {
    constexpr int CHAINS = N == 1 && R <= 4 ? 8 / R : 1;  // additions to one register wait for each other
    Floats parts[CHAINS][N][R] = {};
    int k = 0;
    for (; k + CHAINS <= columns; k += CHAINS)
        for (int c = 0; c < CHAINS; c++, w += PANEL)
            for (int n = 0; n < N; n++)
                for (int r = 0; r < R; r++) parts[c][n][r] += load(w + r * WIDTH) * x[n * stride + k + c];
    for (; k < columns; k++, w += PANEL)
        for (int n = 0; n < N; n++)
            for (int r = 0; r < R; r++) parts[0][n][r] += load(w + r * WIDTH) * x[n * stride + k];
    for (int n = 0; n < N; n++)
        for (int r = 0; r < R; r++) {
            sums[n][first + r] = parts[0][n][r];
            for (int c = 1; c < CHAINS; c++) sums[n][first + r] += parts[c][n][r];
        }
}

// Of several vectors as many registers at a time as leave room for their sums: of 16, in all but AVX-512.
template <int N>
inline void panel_of_floats(const float* w, int columns, const float* x, size_t stride, Floats (&sums)[N][REGISTERS]) {
    constexpr int R = N == 1 || REGISTERS <= 2 ? REGISTERS : 2;
    for (int first = 0; first < REGISTERS; first += R)
        registers_of_floats<N, R>(w + first * WIDTH, columns, x, stride, sums, first);
}

#if defined(__AVX2__) && !defined(__AVX512VNNI__)
#if defined(__AVX512BW__)
typedef __m512i Words;
inline Words none() { return _mm512_setzero_si512(); }
inline Words words(const uint8_t* from) { return _mm512_loadu_si512(from); }
inline Words high_bytes(Words of) { return _mm512_srai_epi16(of, 8); }
inline Words added(Words to, Words a, Words b) { return _mm512_add_epi32(to, _mm512_madd_epi16(a, b)); }
inline Words twice(int32_t pair) { return _mm512_set1_epi32(pair); }
#else
typedef __m256i Words;
inline Words none() { return _mm256_setzero_si256(); }
inline Words words(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
inline Words high_bytes(Words of) { return _mm256_srai_epi16(of, 8); }
inline Words added(Words to, Words a, Words b) { return _mm256_add_epi32(to, _mm256_madd_epi16(a, b)); }
inline Words twice(int32_t pair) { return _mm256_set1_epi32(pair); }
#endif
constexpr int LINES = PANEL * PAIR / sizeof(Words);  // registers that hold PAIR columns of a panel

// As panel_of_bytes. A word is 256 b + (a + 128), of the rows a and b: its products, less 256 times those of its high byte,
// are those of a. All that wraps at 32 bits, as the sums do.
template <int N>
inline void panel_of_words(const uint8_t* w, const Quantised& x, int first, Ints (&sums)[N][REGISTERS]) {
    constexpr int L = N == 1 ? LINES : 1;  // of several vectors a register at a time: the sums must fit
    const int16_t* values = &x.values[size_t(first) * x.columns];
    for (int line = 0; line < LINES; line += L) {
        Words both[N][L], high[N][L];
        for (int n = 0; n < N; n++)
            for (int l = 0; l < L; l++) both[n][l] = high[n][l] = none();
        const uint8_t* from = w + line * sizeof(Words);
#pragma GCC unroll 4
        for (int k = 0; k < x.columns; k += PAIR, from += PANEL * PAIR)
            for (int l = 0; l < L; l++) {
                const Words word = words(from + l * sizeof(Words)), above = high_bytes(word);
                for (int n = 0; n < N; n++) {
                    int32_t pair;
                    memcpy(&pair, values + size_t(n) * x.columns + k, sizeof pair);
                    both[n][l] = added(both[n][l], word, twice(pair));
                    high[n][l] = added(high[n][l], above, twice(pair));
                }
            }
        for (int n = 0; n < N; n++)
            for (int l = 0; l < L; l++) {
                int32_t of[sizeof(Words) / 4], upper[sizeof(Words) / 4];
                memcpy(of, &both[n][l], sizeof of), memcpy(upper, &high[n][l], sizeof upper);
                char* to = reinterpret_cast<char*>(sums[n]) + (line + l) * sizeof(Words);
                for (size_t i = 0; i < sizeof(Words) / 4; i++)
                    of[i] -= 256 * upper[i], upper[i] += x.offsets[first + n];
                memcpy(to, of, sizeof of), memcpy(to + PANEL * 2, upper, sizeof upper);
            }
    }
}
#endif

// Sums of integers (weight + 128) x value over a panel, wrapping at 32 bits as the offset that is taken off does.
template <int N>
inline void panel_of_bytes(const uint8_t* w, const Quantised& x, int first, Ints (&sums)[N][REGISTERS]) {
    const int columns = x.columns;
#if defined(__AVX512VNNI__)
    const int8_t *high = &x.high[size_t(first) * columns], *low = &x.low[size_t(first) * columns];
    constexpr int CHAINS = N == 1 ? 2 : 1;  // additions to one register wait for each other
    __m512i above[CHAINS][N][2], below[CHAINS][N][2];
    for (int c = 0; c < CHAINS; c++)
        for (int n = 0; n < N; n++)
            for (int r = 0; r < 2; r++) above[c][n][r] = below[c][n][r] = _mm512_setzero_si512();
    for (int k = 0; k < columns; k += CHAINS * QUAD)
#pragma GCC unroll 2
        for (int c = 0; c < CHAINS; c++, w += PANEL * QUAD) {
            const __m512i w0 = _mm512_loadu_si512(w), w1 = _mm512_loadu_si512(w + 64);
            for (int n = 0; n < N; n++) {
                int32_t four[2];
                memcpy(&four[0], high + size_t(n) * columns + k + c * QUAD, 4);
                memcpy(&four[1], low + size_t(n) * columns + k + c * QUAD, 4);
                const __m512i up = _mm512_set1_epi32(four[0]), down = _mm512_set1_epi32(four[1]);
                above[c][n][0] = _mm512_dpbusd_epi32(above[c][n][0], w0, up);
                above[c][n][1] = _mm512_dpbusd_epi32(above[c][n][1], w1, up);
                below[c][n][0] = _mm512_dpbusd_epi32(below[c][n][0], w0, down);
                below[c][n][1] = _mm512_dpbusd_epi32(below[c][n][1], w1, down);
            }
        }
    for (int n = 0; n < N; n++)
        for (int r = 0; r < 2; r++) {
            sums[n][r] = Ints(above[0][n][r]) * 256 + Ints(below[0][n][r]);
            for (int c = 1; c < CHAINS; c++) sums[n][r] += Ints(above[c][n][r]) * 256 + Ints(below[c][n][r]);
        }
#elif defined(__AVX2__)
    panel_of_words<N>(w, x, first, sums);
#else
    for (int n = 0; n < N; n++) {
        const int16_t* values = &x.values[size_t(first + n) * columns];
        uint32_t totals[PANEL] = {};
        const uint8_t* from = w;
        for (int k = 0; k < columns; k += QUAD, from += PANEL * QUAD)
            for (int row = 0; row < PANEL; row++)
                for (int i = 0; i < QUAD; i++) totals[row] += uint32_t(int32_t(from[QUAD * row + i]) * values[k + i]);
        memcpy(sums[n], totals, sizeof totals);
    }
#endif
}

// sums = 256 sums + those of bytes of the layer.
template <int N>
inline void add_bytes(const void* bytes, const Linear& layer, size_t row, const Quantised& q, int first,
                      Floats (&sums)[N][REGISTERS]) {
    Ints totals[N][REGISTERS];
    panel_of_bytes<N>(static_cast<const uint8_t*>(bytes) + row * layer.columns, q, first, totals);
    for (int n = 0; n < N; n++)
        for (int r = 0; r < REGISTERS; r++)
            sums[n][r] = sums[n][r] * 256.0f + __builtin_convertvector(totals[n][r] - q.offsets[first + n], Floats);
}

// A panel's results for N vectors -> y (n, to).
template <int N>
void panel_to(const Linear& layer, int index, const float* x, size_t stride, const Quantised& q, int first, float* y,
              size_t to) {
    const size_t row = size_t(index) * PANEL;
    Floats sums[N][REGISTERS] = {};
    if (layer.scales == nullptr) {
        const float* w = static_cast<const float*>(layer.weights) + row * layer.columns;
        panel_of_floats<N>(w, layer.columns, x + first * stride, stride, sums);
    } else {
        add_bytes<N>(layer.weights, layer, row, q, first, sums);
        if (layer.fine != nullptr) add_bytes<N>(layer.fine, layer, row, q, first, sums);
        for (int n = 0; n < N; n++)
            for (int r = 0; r < REGISTERS; r++)
                sums[n][r] *= load(layer.scales + row + r * WIDTH) * q.scales[first + n];
    }
    for (int n = 0; n < N; n++)
        for (int r = 0; r < REGISTERS; r++)
            store(y + (first + n) * to + row + r * WIDTH, sums[n][r] + load(layer.bias + row + r * WIDTH));
}

// W x + b for n vectors x (n, stride) -> y (n, to): this worker's share of the panels. Every other call should go
// through them backwards: what the last one left in the caches is then met first.
inline void multiply(Worker& worker, const Linear& layer, const float* x, size_t stride, int n, float* y, size_t to,
                     Quantised& q, bool back) {
    if (layer.scales != nullptr) {
        if (worker.rank == 0) q.resize(n, layer.columns);
        worker.sync();
        const Range mine = worker.share(n);
        for (int i = mine.begin; i < mine.end; i++) q.set(i, x + i * stride, layer.inputs);
        worker.sync();
    }
    const Range mine = worker.share(layer.rows / PANEL);
    for (int turn = 0; turn < mine.end - mine.begin; turn++) {
        const int index = back ? mine.end - 1 - turn : mine.begin + turn;
        int i = 0;
        if (layer.scales == nullptr && WIDTH == 16)  // else 8 sums do not fit the registers
            for (; i + 8 <= n; i += 8) panel_to<8>(layer, index, x, stride, q, i, y, to);
        for (; i + 4 <= n; i += 4) panel_to<4>(layer, index, x, stride, q, i, y, to);
        for (; i < n; i++) panel_to<1>(layer, index, x, stride, q, i, y, to);
    }
}
