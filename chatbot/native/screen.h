// The likeliest token without reading the whole output layer in 32 bits, and yet exactly.
//
// A first pass over the layer in 8 bits gives every logit within a radius that is proved (pack.py): only tokens whose
// highest possible logit reaches the best lowest possible one are computed in 32 bits, and the largest of those wins.
#pragma once

#include <limits>

#include "linear.h"

struct Screen {
    Linear coarse;       // the layer in 8 bits
    const float* radii;  // (coarse.rows): of a logit, for x of length 1
    const float* rows;   // (vocabulary, inputs): the layer's own weights
    const float* bias;   // (vocabulary)
    float slack;         // of a logit, whatever x is
    int32_t vocabulary;
};

struct Best {
    float logit;
    int32_t token;
    // Of equal logits the first token's wins, as with torch.max.
    bool worse_than(const Best& other) const {
        return other.logit > logit || (other.logit == logit && other.token < token);
    }
};

struct Screening {
    Quantised quantised;
    std::vector<float> highest;  // (n, rows): each logit's upper bound; before that the logits
    std::vector<float> lengths;  // (n): of each x, rounded up
    std::vector<float> floors;   // (workers, n): the best lower bound among a worker's rows
    std::vector<Best> found;     // (workers, n)
    std::atomic<int64_t> recomputed{0};  // logits in 32 bits, since the engine was made

    void resize(const Screen& screen, int n, int workers) {
        highest.resize(std::max(highest.size(), size_t(n) * screen.coarse.rows));
        lengths.resize(n), floors.resize(size_t(workers) * n), found.resize(size_t(workers) * n);
    }
};

// The likeliest token of each of n vectors x (stride floats apart) -> tokens (n).
inline void likeliest(Worker& worker, const Screen& screen, const float* x, size_t stride, int n, Screening& s,
                      bool back, int64_t* tokens) {
    const Linear& layer = screen.coarse;
    if (worker.rank == 0) {
        s.resize(screen, n, worker.size);
        for (int i = 0; i < n; i++)
            s.lengths[i] = std::sqrt(dot(x + i * stride, x + i * stride, layer.inputs)) * 1.0001f;
    }
    worker.sync();
    multiply(worker, layer, x, stride, n, s.highest.data(), layer.rows, s.quantised, back);
    const Range mine = worker.share(layer.rows / PANEL);
    for (int i = 0; i < n; i++) {
        Floats floor = all(-std::numeric_limits<float>::infinity());
        float* logits = &s.highest[size_t(i) * layer.rows];
        for (int row = mine.begin * PANEL; row < mine.end * PANEL; row += WIDTH) {
            const Floats logit = load(logits + row), radius = load(screen.radii + row) * s.lengths[i] + screen.slack;
            store(logits + row, logit + radius);
            floor = larger(floor, logit - radius);
        }
        s.floors[size_t(worker.rank) * n + i] = largest(floor);
    }
    worker.sync();
    int64_t recomputed = 0;
    for (int i = 0; i < n; i++) {
        float floor = s.floors[i];
        for (int other = 1; other < worker.size; other++) floor = std::max(floor, s.floors[size_t(other) * n + i]);
        Best best{-std::numeric_limits<float>::infinity(), 0};
        const float* highest = &s.highest[size_t(i) * layer.rows];
        for (int row = mine.begin * PANEL; row < mine.end * PANEL; row += PANEL) {
            Floats most = load(highest + row);
            for (int r = 1; r < REGISTERS; r++) most = larger(most, load(highest + row + r * WIDTH));
            if (largest(most) < floor) continue;
            for (int token = row; token < std::min(row + PANEL, screen.vocabulary); token++) {
                if (highest[token] < floor) continue;
                const float* weights = screen.rows + size_t(token) * layer.inputs;
                const Best other{dot(weights, x + i * stride, layer.inputs) + screen.bias[token], token};
                recomputed++;
                if (best.worse_than(other)) best = other;
            }
        }
        s.found[size_t(worker.rank) * n + i] = best;
    }
    s.recomputed += recomputed;
    worker.sync();
    if (worker.rank == 0)
        for (int i = 0; i < n; i++) {
            Best best = s.found[i];
            for (int other = 1; other < worker.size; other++)
                if (best.worse_than(s.found[size_t(other) * n + i])) best = s.found[size_t(other) * n + i];
            tokens[i] = best.token;
        }
    worker.sync();
}
