// The C interface: an engine answers one call at a time, each in one go. engine.py mirrors the structures.
#include "network.h"

struct Engine {
    Network network;
    Team team;
    Scratch scratch;
    std::mutex busy;

    Engine(const Network& net, int threads) : network(net), team(threads) {}
};

extern "C" {

Engine* engine_new(const Network* network, int threads) { return new Engine(*network, threads); }

void engine_free(Engine* engine) { delete engine; }

// prompts (B, T), lengths (B) -> replies (B, steps), which end at eos if that is a token; or 1, nothing written: a length
// or a token is out of range.
int engine_reply(Engine* engine, const int64_t* prompts, const int64_t* lengths, int batch, int length, int steps,
                 int64_t eos, int64_t* replies) {
    for (int i = 0; i < batch; i++)
        if (lengths[i] < 1 || lengths[i] > length) return 1;
    for (int64_t i = 0; i < int64_t(batch) * length; i++)
        if (prompts[i] < 0 || prompts[i] >= engine->network.out.vocabulary) return 1;
    std::lock_guard<std::mutex> lock(engine->busy);
    Search search(engine->network, engine->scratch, prompts, lengths, batch, length);
    engine->team.run([&](Worker& worker) { search.run(worker, steps, eos, replies); });
    return 0;
}

// The output layer alone: x (n, stride) -> the likeliest token of each (n).
void engine_likeliest(Engine* engine, const float* x, int64_t stride, int n, int64_t* tokens) {
    std::lock_guard<std::mutex> lock(engine->busy);
    engine->team.run([&](Worker& worker) {
        likeliest(worker, engine->network.out, x, stride, n, engine->scratch.screening, false, tokens);
    });
}

// Logits that were computed in 32 bits so far.
int64_t engine_recomputed(const Engine* engine) { return engine->scratch.screening.recomputed; }

// Whether bytes are packed in words; see linear.h.
int engine_words() { return WORDS; }

// The instructions that it was compiled to use.
const char* engine_instructions() {
#if defined(__AVX512VNNI__)
    return "avx512-vnni";
#elif defined(__AVX512BW__)
    return "avx512";
#elif defined(__AVX2__)
    return "avx2";
#else
    return "plain";
#endif
}
}
