// chatbot/persistent/device.h for a CPU: blocks run one after the other between barriers, and so do the warps and
// threads of one. What a barrier is there for goes wrong here if it is missing: the order can be reversed, shared memory
// begins as NaN, and what is fetched arrives only when it is waited for.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#define DEVICE inline

constexpr int WARPS = THREADS / 32;

struct alignas(16) float4 {
    float x, y, z, w;
};

inline bool reversed = false;
inline int barriers = 0;

inline int nth(int i, int count) { return reversed ? count - 1 - i : i; }

inline bool leader() { return true; }
template <class T>
T fresh(const T* from) {
    return *from;
}
inline void raise(long long* key, long long value) { *key = std::max(*key, value); }
inline int bits_of(float value) {
    int bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float infinity() { return std::numeric_limits<float>::infinity(); }

template <int R, int C, class Work>
void over_lanes(float (&sums)[R][C], Work work) {
    float own[32][R][C] = {}, before[32][R][C];
    for (int lane = 0; lane < 32; lane++) work(lane, own[lane]);
    for (int apart = 16; apart > 0; apart /= 2) {
        memcpy(before, own, sizeof own);
        for (int lane = 0; lane < 32; lane++)
            for (int r = 0; r < R; r++)
                for (int c = 0; c < C; c++) own[lane][r][c] += before[lane ^ apart][r][c];
    }
    memcpy(sums, own[nth(0, 32)], sizeof sums);
}

struct Block {
    const int index, count;
    std::vector<float4> memory_of;
    float* const memory;
    struct Fetch {
        float* to;
        const float* from;
        int floats;
    };
    std::vector<Fetch> fetches;

    Block(int index, int count, int floats)
        : index(index), count(count), memory_of((floats + 3) / 4), memory(&memory_of[0].x) {
        std::fill_n(memory, floats, std::numeric_limits<float>::quiet_NaN());
    }
    template <class Work>
    void spread(int count, Work work) {
        for (int i = 0; i < count; i++) work(nth(i, count));
    }
    template <class Work>
    void spread_warps(int count, Work work) {
        for (int i = 0; i < count; i++) work(nth(i, count) % WARPS, nth(i, count));
    }
    void fetch(float* to, const float* from, int floats) {
        std::fill_n(to, floats, std::numeric_limits<float>::quiet_NaN());
        fetches.push_back({to, from, floats});
    }
    void fetched() {
        for (const Fetch& one : fetches) memcpy(one.to, one.from, sizeof(float) * one.floats);
        fetches.clear();
    }
};

struct Grid {
    std::vector<Block> blocks;
    std::vector<std::function<void(Block&)>> waiting;  // until a barrier: a block does all of it before the next begins

    template <class Work>
    void each(Work work) {
        waiting.push_back(work);
    }
    template <class Work>
    void phase(Work work) {
        each(work);
        barrier();
    }
    void barrier() {
        run();
        barriers++;
    }
    void run() {
        for (int i = 0; i < int(blocks.size()); i++)
            for (auto& work : waiting) work(blocks[nth(i, int(blocks.size()))]);
        waiting.clear();
    }
    template <class Work>
    bool agree(Work work) {
        int agreed = 0;
        each([&](Block& block) { agreed += work(block); });
        run();
        if (agreed != 0 && agreed != int(blocks.size())) fprintf(stderr, "blocks disagree\n"), abort();
        return agreed != 0;
    }
};
