// The threads of one engine: they sleep between replies and spin at the barriers within one, which are too many
// (some hundred a reply) to sleep at.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

constexpr int SPINS = 2000;  // about 20 us; then the core is given away, in case there are fewer cores than threads

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

struct Range {
    int begin, end;
};

class Team;

struct Worker {
    int rank, size;
    Team* team;

    // This worker's share of 0..count, in multiples of a step.
    Range share(int count, int step = 1) const {
        const int64_t steps = (count + step - 1) / step;
        const int begin = int(steps * rank / size) * step, end = int(steps * (rank + 1) / size) * step;
        return {begin < count ? begin : count, end < count ? end : count};
    }
    void sync();
};

class Team {
public:
    explicit Team(int size) : size_(size) {
        for (int rank = 1; rank < size; rank++) threads_.emplace_back([this, rank] { serve(rank); });
    }
    ~Team() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            ended_ = true;
        }
        wake_.notify_all();
        for (auto& thread : threads_) thread.join();
    }
    int size() const { return size_; }

    // Runs work on all threads, the caller's among them; returns when all are done.
    void run(const std::function<void(Worker&)>& work) {
        Worker own{0, size_, this};
        if (size_ > 1) {
            {
                std::lock_guard<std::mutex> lock(mutex_);
                work_ = &work;
                turn_++;
            }
            wake_.notify_all();
        }
        work(own);
        own.sync();
    }

    void sync() {
        if (size_ == 1) return;
        const unsigned phase = phase_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++)
            if (spins < SPINS)
                relax();
            else
                std::this_thread::yield();
    }

private:
    void serve(int rank) {
        Worker own{rank, size_, this};
        for (unsigned seen = 0;;) {
            const std::function<void(Worker&)>* work;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return ended_ || turn_ != seen; });
                if (ended_) return;
                seen = turn_;
                work = work_;
            }
            (*work)(own);
            own.sync();
        }
    }

    const int size_;
    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable wake_;
    const std::function<void(Worker&)>* work_ = nullptr;
    unsigned turn_ = 0;
    bool ended_ = false;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> phase_{0};
};

inline void Worker::sync() { team->sync(); }
