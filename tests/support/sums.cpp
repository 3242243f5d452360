// A panel's sums as the engine has them, for tests.
#include "linear.h"

extern "C" {

int in_words() { return WORDS; }

// x (n, columns) -> the integers that it becomes, values (n, columns), and sums (n, PANEL) of one panel of bytes.
void panel_sums(const uint8_t* panel, const float* x, int n, int columns, int16_t* values, int32_t* sums) {
    Quantised q;
    q.resize(n, columns);
    for (int i = 0; i < n; i++) q.set(i, x + size_t(i) * columns, columns);
    memcpy(values, q.values.data(), size_t(n) * columns * sizeof(int16_t));
    int i = 0;
    for (; i + 4 <= n; i += 4) {
        Ints totals[4][REGISTERS];
        panel_of_bytes<4>(panel, q, i, totals);
        memcpy(sums + size_t(i) * PANEL, totals, sizeof totals);
    }
    for (; i < n; i++) {
        Ints totals[1][REGISTERS];
        panel_of_bytes<1>(panel, q, i, totals);
        memcpy(sums + size_t(i) * PANEL, totals, sizeof totals);
    }
}
}
