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

struct Linear {
    const void* weights;  // (rows / PANEL, columns, PANEL) floats; or bytes, QUAD columns side by side: integers + 128
    const void* fine;     // null, or of integers in 16 bits the low bytes: 256 (weights - 128) + (fine - 128)
    const float* scales;  // (rows), of the integers; null: the weights are floats
    const float* bias;    // (rows), 0 in the padding
    int32_t rows;         // a multiple of PANEL
    int32_t columns;      // in 8 bits a multiple of 2 x QUAD
    int32_t inputs;       // values of x; at most columns
};

constexpr int QUAD = 4;  // columns of 8 bits that lie side by side, as VNNI takes them

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

template <int N>
inline void panel_of_floats(const float* w, int columns, const float* x, size_t stride, Floats (&sums)[N][REGISTERS]) {
    constexpr int CHAINS = N == 1 ? 4 : 1;  // additions to one register wait for each other
    Floats parts[CHAINS][N][REGISTERS] = {};
    int k = 0;
    for (; k + CHAINS <= columns; k += CHAINS)
        for (int c = 0; c < CHAINS; c++, w += PANEL)
            for (int n = 0; n < N; n++)
                for (int r = 0; r < REGISTERS; r++)
                    parts[c][n][r] += load(w + r * WIDTH) * x[n * stride + k + c];
    for (; k < columns; k++, w += PANEL)
        for (int n = 0; n < N; n++)
            for (int r = 0; r < REGISTERS; r++) parts[0][n][r] += load(w + r * WIDTH) * x[n * stride + k];
    for (int n = 0; n < N; n++)
        for (int r = 0; r < REGISTERS; r++) {
            sums[n][r] = parts[0][n][r];
            for (int c = 1; c < CHAINS; c++) sums[n][r] += parts[c][n][r];
        }
}

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
    const int16_t* values = &x.values[size_t(first) * columns];
    for (int half = 0; half < 2; half++) {  // of the panel's rows: 4 rows fill a register
        __m256i parts[N][4];
        for (int n = 0; n < N; n++)
            for (int r = 0; r < 4; r++) parts[n][r] = _mm256_setzero_si256();
        const uint8_t* from = w + half * PANEL * QUAD / 2;
        for (int k = 0; k < columns; k += QUAD, from += PANEL * QUAD)
            for (int n = 0; n < N; n++) {
                int64_t four;
                memcpy(&four, values + size_t(n) * columns + k, 8);
                const __m256i value = _mm256_set1_epi64x(four);
                for (int r = 0; r < 4; r++) {
                    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16 * r));
                    const __m256i product = _mm256_madd_epi16(_mm256_cvtepu8_epi16(bytes), value);
                    parts[n][r] = _mm256_add_epi32(parts[n][r], product);
                }
            }
        for (int n = 0; n < N; n++)
            for (int r = 0; r < 4; r += 2) {  // of each row two sums; hadd works within halves of a register
                const __m256i pairs = _mm256_hadd_epi32(parts[n][r], parts[n][r + 1]);
                const __m256i total = _mm256_permute4x64_epi64(pairs, 0xD8);
                memcpy(reinterpret_cast<char*>(sums[n]) + 64 * half + 16 * r, &total, sizeof total);
            }
    }
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
        if (layer.scales == nullptr)  // of integers, 8 sums do not fit the registers
            for (; i + 8 <= n; i += 8) panel_to<8>(layer, index, x, stride, q, i, y, to);
        for (; i + 4 <= n; i += 4) panel_to<4>(layer, index, x, stride, q, i, y, to);
        for (; i < n; i++) panel_to<1>(layer, index, x, stride, q, i, y, to);
    }
}
