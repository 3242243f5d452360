// What the kernel needs of a GPU: the block that a thread belongs to, its shared memory, and a barrier of all blocks.
// tests/support/emulation.h has the same for a CPU.
#pragma once

#define DEVICE __device__ __forceinline__

constexpr int WARPS = THREADS / 32;
constexpr unsigned LAST = 0x80000000u;  // the bit that changes when all blocks have arrived

// One thread of a warp acts for all of it.
DEVICE bool leader() { return (threadIdx.x & 31) == 0; }

// Reads what another block wrote in this kernel: past the first-level cache, which is each multiprocessor's own.
DEVICE float4 fresh(const float4* from) { return __ldcg(from); }
DEVICE float fresh(const float* from) { return __ldcg(from); }
DEVICE long long fresh(const long long* from) { return __ldcg(from); }

DEVICE void raise(long long* key, long long value) { atomicMax(key, value); }
DEVICE int bits_of(float value) { return __float_as_int(value); }
DEVICE float infinity() { return __int_as_float(0x7f800000); }

// Calls work(lane, sums) for each lane of a warp; sums become the lanes' totals, the same in all of them.
template <int R, int C, class Work>
DEVICE void over_lanes(float (&sums)[R][C], Work work) {
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int c = 0; c < C; c++) sums[r][c] = 0;
    work(int(threadIdx.x & 31), sums);
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2)
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int c = 0; c < C; c++) sums[r][c] += __shfl_xor_sync(0xffffffffu, sums[r][c], apart);
}

struct Block {
    const int index, count;  // this one, and how many there are
    float* const memory;     // shared

    // The threads of the block do work(i) for each i below count, and its warps work(warp, i); then all of it is done.
    template <class Work>
    DEVICE void spread(int count, Work work) {
#pragma unroll 1
        for (int i = threadIdx.x; i < count; i += THREADS) work(i);
        __syncthreads();
    }
    template <class Work>
    DEVICE void spread_warps(int count, Work work) {
        const int warp = threadIdx.x >> 5;
#pragma unroll 1
        for (int i = warp; i < count; i += WARPS) work(warp, i);
        __syncthreads();
    }

    // Begins to copy floats, a multiple of 4, into shared memory. They are there after fetched().
    DEVICE void fetch(float* to, const float* from, int floats) {
#pragma unroll 4
        for (int i = 4 * threadIdx.x; i < floats; i += 4 * THREADS) {
            const unsigned place = unsigned(__cvta_generic_to_shared(to + i));
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(place), "l"(from + i) : "memory");
        }
    }
    DEVICE void fetched() {
        asm volatile("cp.async.wait_all;" ::: "memory");
        __syncthreads();
    }
};

struct Grid {
    Block block;
    unsigned* const arrived;  // 0 before the first reply; needs no reset

    // Each block does its part of the work.
    template <class Work>
    DEVICE void each(Work work) {
        work(block);
    }
    // And none goes on before all have done theirs, or sees anything older.
    template <class Work>
    DEVICE void phase(Work work) {
        work(block);
        barrier();
    }
    // What every block finds out for itself, and finds the same.
    template <class Work>
    DEVICE bool agree(Work work) {
        return work(block);
    }

    // One block adds what the others leave to the last bit, so that each barrier flips it and changes no other: as
    // grid.sync() of cooperative groups does. The fences make one thread's order that of its block (PTX, "Causality
    // Order"); the acquiring read drops the first-level cache.
    DEVICE void barrier() {
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            const unsigned before = atomicAdd(arrived, block.index == 0 ? LAST - unsigned(block.count - 1) : 1u);
            unsigned now;
            do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(arrived) : "memory");
            while (((now ^ before) & LAST) == 0);
            __threadfence();
        }
        __syncthreads();
    }
};
