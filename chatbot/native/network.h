// The tutorial's chatbot (chatbot/model.py) over packed weights: bidirectional GRU, attention, greedy search.
//
// Prompts are sorted by length, the longest first: those that are still being read at a step are then the first ones.
#pragma once

#include <numeric>

#include "screen.h"

struct Gru {
    Linear input;        // of the layers behind the first
    Linear hidden;       // gates r, z, n below each other, as PyTorch has them
    const float* table;  // (vocabulary, gates()): the first layer's input projections of every token; else null
};

constexpr int64_t GOES_ON = -1;  // in place of EOS: no token ends a reply

enum Attention : int32_t { DOT, GENERAL, CONCAT };

struct Network {
    int32_t hidden, encoder_layers, decoder_layers, attention, pad, sos;
    const Gru* encoder;  // (layers, directions)
    const Gru* decoder;  // (layers)
    Linear keys;         // of attention "general" and "concat": applied to each prompt position
    Linear query;        // of "concat": applied to the decoder's state
    const float* value;  // of "concat" (hidden)
    Linear concat;
    Screen out;

    int state_stride() const { return round_up(hidden, 32); }
    int pair_stride() const { return round_up(2 * hidden, 32); }
    int gate_stride() const { return round_up(3 * hidden, PANEL); }
};

// Everything that a call writes; it only ever grows.
struct Scratch {
    std::vector<int> order, lengths;          // (B): prompts by length
    std::vector<int64_t> tokens;              // (B)
    std::vector<char> ended;                  // (B): the reply has its EOS
    int open;                                 // replies that have not ended
    std::vector<float> states;                // (encoder layers, directions, B, H)
    std::vector<float> layers[2];             // (B, T, 2H): outputs of an encoder layer, and of the one before
    std::vector<float> outputs, keys;         // (B, T, H)
    std::vector<float> inputs, gates;         // (B x T, 3H), (B, 3H)
    std::vector<float> query, energies;       // (B, H), (B, T)
    std::vector<float> joined, mixed;         // (B, 2H), (B, H)
    Quantised quantised;
    Screening screening;

    void resize(const Network& net, int batch, int length) {
        const size_t b = batch, t = length, h = net.state_stride(), pair = net.pair_stride();
        const size_t gate = net.gate_stride() + 2 * PANEL, directions = 2 * net.encoder_layers;
        order.resize(b), lengths.resize(b), tokens.resize(b), ended.resize(b);
        grow(states, directions * b * h), grow(outputs, b * t * h), grow(keys, b * t * h);
        for (auto& layer : layers) grow(layer, b * t * pair);
        grow(inputs, b * t * gate), grow(gates, b * gate);
        grow(query, b * h), grow(energies, b * t), grow(joined, b * pair), grow(mixed, b * h);
    }
    static void grow(std::vector<float>& buffer, size_t size) {
        if (buffer.size() < size + PANEL) buffer.resize(size + PANEL);
    }
};

class Search {
public:
    Search(const Network& net, Scratch& scratch, const int64_t* prompts, const int64_t* lengths, int batch, int length)
        : net_(net), s_(scratch), prompts_(prompts), batch_(batch), length_(length), h_(net.state_stride()),
          pair_(net.pair_stride()), gate_(net.gate_stride()) {
        s_.resize(net, batch, length);
        std::iota(s_.order.begin(), s_.order.end(), 0);
        std::stable_sort(s_.order.begin(), s_.order.end(), [&](int a, int b) { return lengths[a] > lengths[b]; });
        for (int i = 0; i < batch; i++) s_.lengths[i] = int(lengths[s_.order[i]]);
        std::fill(s_.states.begin(), s_.states.end(), 0.0f);
        for (auto& layer : s_.layers) std::fill(layer.begin(), layer.end(), 0.0f);
    }

    // Writes steps tokens a prompt -> replies (B, steps). With eos, a token, until each reply has it: behind it stands pad.
    void run(Worker& worker, int steps, int64_t eos, int64_t* replies) {
        encode(worker);
        if (worker.rank == 0) {
            std::fill_n(s_.tokens.begin(), batch_, int64_t(net_.sos));
            std::fill_n(replies, size_t(batch_) * steps, int64_t(net_.pad));
            std::fill_n(s_.ended.begin(), batch_, 0);
            s_.open = batch_;
        }
        worker.sync();
        for (int step = 0; step < steps && s_.open > 0; step++) {
            decode(worker, step % 2);
            if (worker.rank == 0) write(step, steps, eos, replies);
            if (eos != GOES_ON) worker.sync();  // all of them read whether there is a next step
        }
    }

private:
    const Network& net_;
    Scratch& s_;
    const int64_t* prompts_;
    const int batch_, length_;
    const size_t h_, pair_, gate_;

    void write(int step, int steps, int64_t eos, int64_t* replies) {
        for (int i = 0; i < batch_; i++) {
            if (s_.ended[i]) continue;
            replies[size_t(s_.order[i]) * steps + step] = s_.tokens[i];
            if (s_.tokens[i] == eos) s_.ended[i] = 1, s_.open--;
        }
    }
    int64_t prompt_token(int i, int t) const { return prompts_[size_t(s_.order[i]) * length_ + t]; }
    float* state(int layer) { return &s_.states[size_t(layer) * batch_ * h_]; }

    void linear(Worker& worker, const Linear& layer, const float* x, size_t stride, int n, float* y, size_t to,
                bool back) {
        multiply(worker, layer, x, stride, n, y, to, s_.quantised, back);
        worker.sync();
    }

    // One step of n states (n, H) in place, given a way to their input projections.
    template <typename Input>
    void gru(Worker& worker, const Gru& layer, float* states, int n, bool back, Input input) {
        linear(worker, layer.hidden, states, h_, n, s_.gates.data(), gate_, back);
        const int hidden = net_.hidden;
        const Range mine = worker.share(hidden, WIDTH);
        for (int i = 0; i < n; i++) {
            const float *from = input(i), *own = &s_.gates[i * gate_];
            float* h = states + i * h_;
            for (int j = mine.begin; j < mine.end; j += WIDTH) {
                const Floats r = sigmoid(load(from + j) + load(own + j));
                const Floats z = sigmoid(load(from + hidden + j) + load(own + hidden + j));
                const Floats n = tangent(load(from + 2 * hidden + j) + r * load(own + 2 * hidden + j));
                store(h + j, n + z * (load(h + j) - n));
            }
            if (mine.end == hidden) std::fill(h + hidden, h + h_, 0.0f);
        }
        worker.sync();
    }

    void encode(Worker& worker) {
        const int hidden = net_.hidden;
        for (int layer = 0; layer < net_.encoder_layers; layer++)
            for (int direction = 0; direction < 2; direction++) read(worker, layer, direction);
        const float* last = s_.layers[(net_.encoder_layers - 1) % 2].data();
        const Range mine = worker.share(batch_ * length_);
        for (int i = mine.begin; i < mine.end; i++) {
            float* to = &s_.outputs[i * h_];
            for (int j = 0; j < hidden; j++) to[j] = last[i * pair_ + j] + last[i * pair_ + hidden + j];
        }
        worker.sync();
        if (net_.attention != DOT)
            linear(worker, net_.keys, s_.outputs.data(), h_, batch_ * length_, s_.keys.data(), h_, false);
    }

    // One direction of an encoder layer over all prompts.
    void read(Worker& worker, int layer, int direction) {
        const Gru& gru_of = net_.encoder[2 * layer + direction];
        const float* before = s_.layers[(layer + 1) % 2].data();
        float *to = s_.layers[layer % 2].data(), *states = state(2 * layer + direction);
        if (layer > 0)
            linear(worker, gru_of.input, before, pair_, batch_ * length_, s_.inputs.data(), gate_, false);
        int active = batch_;
        for (int step = 0; step < s_.lengths[0]; step++) {
            while (s_.lengths[active - 1] <= step) active--;
            auto place = [&](int i) { return direction ? s_.lengths[i] - 1 - step : step; };
            gru(worker, gru_of, states, active, step % 2, [&](int i) {
                return layer == 0 ? gru_of.table + size_t(prompt_token(i, place(i))) * gate_
                                  : &s_.inputs[(size_t(i) * length_ + place(i)) * gate_];
            });
            const Range mine = worker.share(active);
            for (int i = mine.begin; i < mine.end; i++)
                memcpy(to + (size_t(i) * length_ + place(i)) * pair_ + direction * net_.hidden, states + i * h_,
                       sizeof(float) * net_.hidden);
            worker.sync();
        }
    }

    void decode(Worker& worker, bool back) {
        const int hidden = net_.hidden;
        for (int layer = 0; layer < net_.decoder_layers; layer++) {
            const Gru& gru_of = net_.decoder[layer];
            if (layer > 0)
                linear(worker, gru_of.input, state(layer - 1), h_, batch_, s_.inputs.data(), gate_, back);
            gru(worker, gru_of, state(layer), batch_, back, [&](int i) {
                return layer == 0 ? gru_of.table + size_t(s_.tokens[i]) * gate_ : &s_.inputs[i * gate_];
            });
        }
        const float* top = state(net_.decoder_layers - 1);
        if (net_.attention == CONCAT) linear(worker, net_.query, top, h_, batch_, s_.query.data(), h_, false);
        Range mine = worker.share(batch_);
        for (int i = mine.begin; i < mine.end; i++) attend(i, top + i * h_);
        worker.sync();
        linear(worker, net_.concat, s_.joined.data(), pair_, batch_, s_.mixed.data(), h_, back);
        mine = worker.share(batch_);
        for (int i = mine.begin; i < mine.end; i++) {
            float* x = &s_.mixed[i * h_];
            for (int j = 0; j < hidden; j += WIDTH) store(x + j, tangent(load(x + j)));
        }
        worker.sync();
        likeliest(worker, net_.out, s_.mixed.data(), h_, batch_, s_.screening, back, s_.tokens.data());
    }

    float energy(int i, int t, const float* state) const {
        const size_t at = (size_t(i) * length_ + t) * h_;
        if (net_.attention == DOT) return dot(state, &s_.outputs[at], net_.hidden);
        if (net_.attention == GENERAL) return dot(state, &s_.keys[at], net_.hidden);
        float total = 0;
        const float *query = &s_.query[i * h_], *key = &s_.keys[at];
        for (int j = 0; j < net_.hidden; j += WIDTH) {
            float part[WIDTH];
            store(part, tangent(load(query + j) + load(key + j)));
            total += dot(part, net_.value + j, std::min(WIDTH, net_.hidden - j));
        }
        return total;
    }

    // A state's own values and, behind them, the prompt's outputs weighed by their likeness to it -> joined (2H).
    void attend(int i, const float* state) {
        const int hidden = net_.hidden;
        float *energies = &s_.energies[size_t(i) * length_], *joined = &s_.joined[i * pair_];
        float most = -std::numeric_limits<float>::infinity();
        for (int t = 0; t < length_; t++) {
            const bool blocked = prompt_token(i, t) == net_.pad;
            energies[t] = blocked ? -std::numeric_limits<float>::infinity() : energy(i, t, state);
            most = std::max(most, energies[t]);
        }
        float total = 0;
        for (int t = 0; t < length_; t++) total += energies[t] = std::exp(energies[t] - most);
        memcpy(joined, state, sizeof(float) * hidden);
        std::fill(joined + hidden, joined + pair_, 0.0f);
        for (int t = 0; t < length_; t++) {
            const float weight = energies[t] / total;
            const float* output = &s_.outputs[(size_t(i) * length_ + t) * h_];
            for (int j = 0; j < hidden; j++) joined[hidden + j] += weight * output[j];
        }
    }
};
