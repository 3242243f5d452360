// Vectors as wide as the machine's registers, and the functions that a GRU needs of them.
// GCC's and Clang's vector extensions: https://gcc.gnu.org/onlinedocs/gcc/Vector-Extensions.html
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int WIDTH = 16;  // floats in a register
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

constexpr int PANEL = 32;  // rows that lie side by side in packed weights; as in pack.py
constexpr int REGISTERS = PANEL / WIDTH;

typedef float Floats __attribute__((vector_size(WIDTH * 4)));
typedef int32_t Ints __attribute__((vector_size(WIDTH * 4)));
typedef float LooseFloats __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

inline Floats load(const float* from) { return *reinterpret_cast<const LooseFloats*>(from); }
inline void store(float* to, Floats value) { *reinterpret_cast<LooseFloats*>(to) = value; }
inline Floats all(float value) { return value - Floats{}; }  // a plain cast does not broadcast
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
inline constexpr int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

constexpr float ROUNDER = 12582912.0f;  // 1.5 x 2^23: adding it rounds a float below 2^22 to the nearest integer

inline float sum(Floats value) {
    float total = 0;
    for (int i = 0; i < WIDTH; i++) total += value[i];
    return total;
}

inline float largest(Floats value) {
    float most = value[0];
    for (int i = 1; i < WIDTH; i++) most = value[i] > most ? value[i] : most;
    return most;
}

// exp to 2 units in the last place: 2^n times a polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2] (Cephes, expf).
inline Floats exponential(Floats x) {
    x = smaller(larger(x, all(-87.0f)), all(88.0f));
    const Floats n = (x * 1.44269504f + ROUNDER) - ROUNDER;
    const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
    Floats scale;
    memcpy(&scale, &exponent, sizeof scale);
    return p * scale;
}

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }
inline Floats tangent(Floats x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }  // hyperbolic

inline float dot(const float* a, const float* b, int count) {
    Floats sums[4] = {};
    int i = 0;
    for (; i + 4 * WIDTH <= count; i += 4 * WIDTH)
        for (int j = 0; j < 4; j++) sums[j] += load(a + i + j * WIDTH) * load(b + i + j * WIDTH);
    for (; i + WIDTH <= count; i += WIDTH) sums[0] += load(a + i) * load(b + i);
    float total = sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; i < count; i++) total += a[i] * b[i];
    return total;
}
