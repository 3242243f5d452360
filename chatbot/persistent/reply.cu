// A whole reply of the chatbot (chatbot/model.py) in one kernel: bidirectional GRU, attention, greedy search.
//
// Each block keeps its share of the weights in shared memory for the whole call: of each GRU some units, of the other
// layers some rows. A phase lets every block compute its share of a vector; a barrier of all blocks follows, because
// the next phase reads the whole vector. plan.py divides the memory, engine.py packs the weights and mirrors Task.
//
// The same source is compiled for a CPU, where emulation.h runs one block after the other (tests/test_persistent.py).
#ifdef __CUDACC__
#include "device.h"
#else
#include "emulation.h"
#endif

constexpr int GATES = 3;  // of a GRU: reset, update, new
constexpr int WIDE = 4;   // vectors that a warp multiplies at a time, if there are several
constexpr int TILE = 4;   // words whose logits it computes at a time
constexpr long long INDEX = 0x7fffffff;                 // less a word, the low half of its key
constexpr long long LEAST = -0x7fffffffffffffff - 1;    // a key below all others
constexpr long long HIGH = 1LL << 32;

// A vector has H floats and zeros up to `columns`, a multiple of 4. A record is one or more rows of weights, each like
// a vector or like two of them one after the other, and behind them a bias for each, up to a multiple of 4.
struct Task {
    int hidden, gates, words, encoder_layers, decoder_layers, general;  // gates: floats of a table's row
    int steps, pad, sos, eos;                                           // eos: -1 where no word ends a reply
    // As planned. A block's shared memory: places in floats, and the number of slots, each of which holds two vectors.
    int columns, batch, tokens, slots, sums, decoder_floats, encoder_floats;
    int encoder_at, concat_at, out_at, x_at, sums_at, scores_at, best_at;
    const float* tables[3];          // (words, gates): first input projections, encoder's two ways and decoder
    const float *decoder, *encoder;  // (blocks, decoder_floats) and (blocks, encoder_floats): what each block keeps
    const float* inputs;             // (encoder layers - 1, 2H) records of 3 double rows
    const float* of_keys;            // (H) records of 1 row; of attention "general"
    const long long* prompts;        // (B, T)
    long long* replies;              // (B, S)
    float* encoded;                  // (encoder layers, 2: parity of the step, 2 ways, B) vectors: states
    float* read;                     // (2: parity of the layer, T, B, 2 ways) vectors: a layer's outputs
    float* projected;                // (2H, 3, T, B): a layer's input projections, each of the block that wrote it
    float *outputs, *targets;        // (T, B) vectors: the encoder's outputs, and what states are compared with
    float* states;                   // (2: parity of the step, decoder layers, B) vectors
    float *contexts, *mixed;         // (B) vectors
    long long* keys;                 // (S, B): a key is a logit, in integers of its order, above INDEX less the word
    unsigned* arrived;
};

struct Range {
    int begin, end;
    DEVICE int size() const { return end - begin; }
};

DEVICE Range share(const Block& block, int count) {
    return {int((long long)count * block.index / block.count), int((long long)count * (block.index + 1) / block.count)};
}
DEVICE int most(const Block& block, int count) { return (count + block.count - 1) / block.count; }
DEVICE int smaller(int a, int b) { return a < b ? a : b; }
DEVICE int record(int rows, int columns) { return rows * columns + (rows + 3) / 4 * 4; }
DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

DEVICE float* encoded(const Task& task, int layer, int parity, int way, int b) {
    return task.encoded + (((size_t(layer) * 2 + parity) * 2 + way) * task.batch + b) * task.columns;
}
DEVICE float* read_of(const Task& task, int layer, int n) {
    return task.read + ((size_t(layer % 2) * task.tokens) * task.batch + n) * 2 * task.columns;
}
DEVICE float* state(const Task& task, int layer, int step, int b) {  // before the step
    if (step == 0) return encoded(task, layer / 2, task.tokens % 2, layer % 2, b);
    return task.states + ((size_t(step % 2) * task.decoder_layers + layer) * task.batch + b) * task.columns;
}
DEVICE float* slot_of(const Block& block, const Task& task, int slot) {
    return block.memory + task.x_at + slot * 2 * task.columns;
}
DEVICE int token_before(const Task& task, int step, int b) {
    return step == 0 ? task.sos : int(INDEX - (fresh(task.keys + (step - 1) * task.batch + b) & INDEX));
}
// Of equal logits the first word has the larger key, as torch.max chooses it; adding 0 makes -0 equal to 0.
DEVICE long long key_of(float logit, int word) {
    const int bits = bits_of(logit + 0.0f), ordered = bits ^ ((bits >> 31) & int(INDEX));
    return ordered * HIGH + (INDEX - word);
}

// Does the work by as many vectors as there are slots: work(first, count).
template <class Work>
DEVICE void by_slots(const Task& task, int vectors, Work work) {
#pragma unroll 1
    for (int first = 0; first < vectors; first += task.slots) work(first, smaller(task.slots, vectors - first));
}

// Copies vectors, or pairs of them, from(slot) into the block's slots, `at` floats behind their beginnings; 0 is zeros.
template <class From>
DEVICE void stage(Block& block, const Task& task, int count, int at, int columns, From from) {
    const int quads = columns / 4;
    block.spread(count * quads, [&](int i) {
        const float4* source = reinterpret_cast<const float4*>(from(i / quads));
        float4* to = reinterpret_cast<float4*>(slot_of(block, task, i / quads) + at) + i % quads;
        *to = source ? fresh(source + i % quads) : float4{0, 0, 0, 0};
    });
}

// The products of R rows with C vectors, which lie `apart` floats from each other.
template <int R, int C>
DEVICE void dots(const float* const (&rows)[R], const float* x, int apart, int columns, float (&sums)[R][C]) {
    over_lanes<R, C>(sums, [&](int lane, float (&own)[R][C]) {
#pragma unroll(C == 1 ? 2 : 1)
        for (int k = 4 * lane; k < columns; k += 4 * 32) {
            float4 w[R];
#pragma unroll
            for (int r = 0; r < R; r++) w[r] = *reinterpret_cast<const float4*>(rows[r] + k);
#pragma unroll
            for (int c = 0; c < C; c++) {
                const float4 v = *reinterpret_cast<const float4*>(x + c * apart + k);
#pragma unroll
                for (int r = 0; r < R; r++)
                    own[r][c] += w[r].x * v.x + w[r].y * v.y + w[r].z * v.z + w[r].w * v.w;
            }
        }
    });
}

// Multiplies groups of R rows with the first `count` slots. rows(group, rows) sets a group's rows and returns where in
// a slot their vector begins; store(warp, group, slot, products) takes its R products with one of them.
template <int R, int C, class Rows, class Store>
DEVICE void multiply_by(Block& block, const Task& task, int groups, int count, int columns, Rows rows, Store store) {
    block.spread_warps(groups * ((count + C - 1) / C), [&](int warp, int i) {
        const int group = i % groups, first = i / groups * C;
        const float* of[R];
        float sums[R][C];
        const int at = rows(group, of);
        dots<R, C>(of, slot_of(block, task, first) + at, 2 * task.columns, columns, sums);
        if (leader()) {
#pragma unroll
            for (int c = 0; c < C; c++) {
                if (first + c >= count) continue;
                float products[R];
#pragma unroll
                for (int r = 0; r < R; r++) products[r] = sums[r][c];
                store(warp, group, first + c, products);
            }
        }
    });
}
template <int R, class Rows, class Store>
DEVICE void multiply(Block& block, const Task& task, int groups, int count, int columns, Rows rows, Store store) {
    if (count > 1)
        multiply_by<R, WIDE>(block, task, groups, count, columns, rows, store);
    else
        multiply_by<R, 1>(block, task, groups, count, columns, rows, store);
}

// The next state of a unit from its weighted inputs and states and the last.
DEVICE float gated(const float (&in)[GATES], const float* of, float before) {
    const float reset = sigmoid(in[0] + of[0]), update = sigmoid(in[1] + of[1]);
    const float candidate = tanhf(in[2] + reset * of[2]);
    return candidate + update * (before - candidate);
}

// The input projections of a layer of the encoder behind the first, of all positions; their weights are read once.
DEVICE void project(Block& block, const Task& task, int layer) {
    const Range units = share(block, 2 * task.hidden);
    const int positions = task.tokens * task.batch, wide = 2 * task.columns;
    const size_t size = record(GATES, wide);
    const float* weights = task.inputs + (size_t(layer - 1) * 2 * task.hidden + units.begin) * size;
    by_slots(task, positions, [&](int first, int count) {
        stage(block, task, count, 0, wide, [&](int slot) { return read_of(task, layer - 1, first + slot); });
        multiply<GATES>(
            block, task, units.size(), count, wide,
            [&](int unit, const float* (&rows)[GATES]) {
                for (int gate = 0; gate < GATES; gate++) rows[gate] = weights + unit * size + gate * wide;
                return 0;
            },
            [&](int, int unit, int slot, const float (&products)[GATES]) {
                float* to = task.projected + size_t(units.begin + unit) * GATES * positions + first + slot;
                const float* biases = weights + unit * size + GATES * wide;
                for (int gate = 0; gate < GATES; gate++) to[size_t(gate) * positions] = products[gate] + biases[gate];
            });
    });
}

// The input projections of a unit at position n, of token; units of the backward way come second.
DEVICE void encoder_inputs(const Task& task, int layer, int unit, int n, long long token, float (&in)[GATES]) {
    const int positions = task.tokens * task.batch, way = unit / task.hidden, j = unit % task.hidden;
    for (int gate = 0; gate < GATES; gate++)
        in[gate] = layer == 0 ? task.tables[way][size_t(token) * task.gates + gate * task.hidden + j]
                              : fresh(task.projected + (size_t(unit) * GATES + gate) * positions + n);
}

// One step of a layer of the encoder, both ways: the backward one is at position T - 1 - step. States don't change
// where prompts are padded.
DEVICE void encode(Block& block, const Task& task, int layer, int step) {
    const Range units = share(block, 2 * task.hidden);
    const int own = units.size(), hidden = task.hidden, columns = task.columns, size = record(GATES, columns);
    const float* weights = block.memory + task.encoder_at + layer * most(block, 2 * hidden) * size;
    float* sums = block.memory + task.sums_at;
    by_slots(task, task.batch, [&](int first, int count) {
#pragma unroll 1
        for (int way = 0; way < 2; way++)
            if (units.begin < (way + 1) * hidden && units.end > way * hidden)
                stage(block, task, count, way * columns, columns, [&](int slot) -> const float* {
                    return step == 0 ? nullptr : encoded(task, layer, step % 2, way, first + slot);
                });
        multiply<GATES>(
            block, task, own, count, columns,
            [&](int unit, const float* (&rows)[GATES]) {
                for (int gate = 0; gate < GATES; gate++) rows[gate] = weights + unit * size + gate * columns;
                return (units.begin + unit) / hidden * columns;
            },
            [&](int, int unit, int slot, const float (&products)[GATES]) {
                const float* biases = weights + unit * size + GATES * columns;
                float* to = sums + slot * task.sums + unit * GATES;
                for (int gate = 0; gate < GATES; gate++) to[gate] = products[gate] + biases[gate];
            });
        block.spread(own * count, [&](int i) {
            const int unit = units.begin + i % own, slot = i / own, b = first + slot;
            const int way = unit / hidden, j = unit % hidden, t = way ? task.tokens - 1 - step : step;
            const long long token = task.prompts[size_t(b) * task.tokens + t];
            const int n = t * task.batch + b;
            float in[GATES];
            encoder_inputs(task, layer, unit, n, token, in);
            const float before = slot_of(block, task, slot)[way * columns + j];
            const bool live = token != task.pad;
            const float after = live ? gated(in, sums + slot * task.sums + i % own * GATES, before) : before;
            encoded(task, layer, (step + 1) % 2, way, b)[j] = after;
            read_of(task, layer, n)[way * columns + j] = live ? after : 0.0f;
        });
    });
}

// The encoder's outputs: the sums of its two ways.
DEVICE void sum_ways(Block& block, const Task& task) {
    const int columns = task.columns;
    const Range own = share(block, task.tokens * task.batch * columns);
    block.spread(own.size(), [&](int i) {
        const int at = own.begin + i;
        const float* both = read_of(task, task.encoder_layers - 1, at / columns) + at % columns;
        task.outputs[at] = fresh(both) + fresh(both + columns);
    });
}

// What attention "general" compares states with.
DEVICE void compute_targets(Block& block, const Task& task) {
    const Range rows_of = share(block, task.hidden);
    const int columns = task.columns, size = record(1, columns);
    const float* weights = task.of_keys + size_t(rows_of.begin) * size;
    by_slots(task, task.tokens * task.batch, [&](int first, int count) {
        stage(block, task, count, 0, columns, [&](int slot) { return task.outputs + size_t(first + slot) * columns; });
        multiply<1>(
            block, task, rows_of.size(), count, columns,
            [&](int row, const float* (&rows)[1]) {
                rows[0] = weights + size_t(row) * size;
                return 0;
            },
            [&](int, int row, int slot, const float (&products)[1]) {
                float* to = task.targets + size_t(first + slot) * columns + rows_of.begin + row;
                *to = products[0] + weights[size_t(row) * size + columns];
            });
    });
}

// One step of a layer of the decoder. A slot holds the input, which the first layer does not need, and the state.
DEVICE void cell(Block& block, const Task& task, int layer, int step) {
    const Range units = share(block, task.hidden);
    const int own = units.size(), hidden = task.hidden, columns = task.columns, parts = layer == 0 ? 1 : 2;
    const int size = record(parts * GATES, columns);
    const int layers_before = layer == 0 ? 0 : record(GATES, columns) + (layer - 1) * size;
    const float* weights = block.memory + most(block, hidden) * layers_before;
    float* sums = block.memory + task.sums_at;
    by_slots(task, task.batch, [&](int first, int count) {
        if (layer > 0)
            stage(block, task, count, 0, columns, [&](int slot) { return state(task, layer - 1, step + 1, first + slot); });
        stage(block, task, count, columns, columns, [&](int slot) { return state(task, layer, step, first + slot); });
        multiply<GATES>(  // the groups of a unit: its weights of the input, and of the state, which are the last
            block, task, own * parts, count, columns,
            [&](int group, const float* (&rows)[GATES]) {
                const float* at = weights + group / parts * size + group % parts * GATES * columns;
                for (int gate = 0; gate < GATES; gate++) rows[gate] = at + gate * columns;
                return group % parts == parts - 1 ? columns : 0;
            },
            [&](int, int group, int slot, const float (&products)[GATES]) {
                const int part = group % parts, unit = group / parts;
                const float* biases = weights + unit * size + parts * GATES * columns + part * GATES;
                float* to = sums + slot * task.sums + (unit * 2 + (part == parts - 1)) * GATES;
                for (int gate = 0; gate < GATES; gate++) to[gate] = products[gate] + biases[gate];
            });
        block.spread(own * count, [&](int i) {
            const int unit = i % own, slot = i / own, b = first + slot, j = units.begin + unit;
            const float *both = sums + slot * task.sums + unit * 2 * GATES, *inputs = both;
            if (layer == 0) inputs = task.tables[2] + size_t(token_before(task, step, b)) * task.gates + j;
            float in[GATES];
            for (int gate = 0; gate < GATES; gate++) in[gate] = inputs[layer == 0 ? gate * hidden : gate];
            const float before = slot_of(block, task, slot)[columns + j];
            state(task, layer, step + 1, b)[j] = gated(in, both + GATES, before);
        });
    });
}

// The context of a prompt behind its state, which stands in the first slot: the outputs, weighed by their likeness to it.
DEVICE void attend(Block& block, const Task& task, int b) {
    const int columns = task.columns, tokens = task.tokens;
    float *x = slot_of(block, task, 0), *energies = block.memory + task.scores_at, *shares = energies + tokens;
    block.spread_warps(tokens, [&](int, int t) {
        const float* rows[1] = {task.targets + (size_t(t) * task.batch + b) * columns};
        float sums[1][1];
        dots<1, 1>(rows, x, 0, columns, sums);
        if (leader()) energies[t] = task.prompts[size_t(b) * tokens + t] == task.pad ? -infinity() : sums[0][0];
    });
    block.spread(tokens, [&](int t) {
        float largest = -infinity();
#pragma unroll 1
        for (int other = 0; other < tokens; other++) largest = fmaxf(largest, energies[other]);
        shares[t] = expf(energies[t] - largest);
    });
    block.spread(columns, [&](int j) {
        float total = 0, context = 0;
#pragma unroll 1
        for (int t = 0; t < tokens; t++) {
            total += shares[t];
            context += shares[t] * fresh(task.outputs + (size_t(t) * task.batch + b) * columns + j);
        }
        x[columns + j] = context / total;
    });
}

// The contexts of several prompts, each computed by one block.
DEVICE void attend_all(Block& block, const Task& task, int step) {
#pragma unroll 1
    for (int b = block.index; b < task.batch; b += block.count) {
        stage(block, task, 1, 0, task.columns, [&](int) { return state(task, task.decoder_layers - 1, step + 1, b); });
        attend(block, task, b);
        block.spread(task.columns, [&](int j) {
            task.contexts[size_t(b) * task.columns + j] = slot_of(block, task, 0)[task.columns + j];
        });
    }
}

// The layer behind the attention. The context of a single prompt is computed here, by every block.
DEVICE void mix(Block& block, const Task& task, int step) {
    const Range rows_of = share(block, task.hidden);
    const int columns = task.columns, wide = 2 * columns, size = record(1, wide);
    const float* weights = block.memory + task.concat_at;
    by_slots(task, task.batch, [&](int first, int count) {
        stage(block, task, count, 0, columns,
              [&](int slot) { return state(task, task.decoder_layers - 1, step + 1, first + slot); });
        if (task.batch == 1)
            attend(block, task, 0);
        else
            stage(block, task, count, columns, columns,
                  [&](int slot) { return task.contexts + size_t(first + slot) * columns; });
        multiply<1>(
            block, task, rows_of.size(), count, wide,
            [&](int row, const float* (&rows)[1]) {
                rows[0] = weights + row * size;
                return 0;
            },
            [&](int, int row, int slot, const float (&products)[1]) {
                float* to = task.mixed + size_t(first + slot) * columns + rows_of.begin + row;
                *to = tanhf(products[0] + weights[row * size + wide]);
            });
    });
}

// The likeliest word of each prompt: first of each warp, then of each block, then of all.
DEVICE void choose(Block& block, const Task& task, int step) {
    const Range words = share(block, task.words);
    const int columns = task.columns, last = words.size() - 1, size = record(1, columns);
    const float* weights = block.memory + task.out_at;
    long long* best = reinterpret_cast<long long*>(block.memory + task.best_at);  // (warps, slots)
    by_slots(task, task.batch, [&](int first, int count) {
        stage(block, task, count, 0, columns, [&](int slot) { return task.mixed + size_t(first + slot) * columns; });
        block.spread(WARPS * task.slots, [&](int i) { best[i] = LEAST; });
        multiply<TILE>(
            block, task, (words.size() + TILE - 1) / TILE, count, columns,
            [&](int tile, const float* (&rows)[TILE]) {
                for (int r = 0; r < TILE; r++) rows[r] = weights + smaller(tile * TILE + r, last) * size;
                return 0;
            },
            [&](int warp, int tile, int slot, const float (&products)[TILE]) {
                long long* likeliest = best + warp * task.slots + slot;
                for (int r = 0; r < TILE; r++) {
                    const int word = smaller(tile * TILE + r, last);
                    const long long key = key_of(products[r] + weights[word * size + columns], words.begin + word);
                    if (key > *likeliest) *likeliest = key;
                }
            });
        block.spread(count, [&](int slot) {
            long long key = LEAST;
#pragma unroll 1
            for (int warp = 0; warp < WARPS; warp++)
                if (best[warp * task.slots + slot] > key) key = best[warp * task.slots + slot];
            raise(task.keys + step * task.batch + first + slot, key);
        });
    });
}

DEVICE bool ended(const Task& task, int step, int b) {
#pragma unroll 1
    for (int written = 1; written <= step + 1; written++)
        if (token_before(task, written, b) == task.eos) return true;
    return false;
}

// Tells whether every reply has its EOS after the step.
DEVICE bool all_ended(Block& block, const Task& task, int step) {
    float* open = block.memory + task.sums_at;
    block.spread(1, [&](int) { *open = 0; });
    block.spread(task.batch, [&](int b) {
        if (!ended(task, step, b)) *open = 1;
    });
    const bool all = *open == 0;
    block.spread(0, [](int) {});  // all threads have read it
    return all;
}

// Behind an EOS that ends a reply stands PAD.
DEVICE void write(Block& block, const Task& task) {
    const Range own = share(block, task.batch);
    block.spread(own.size(), [&](int i) {
        const int b = own.begin + i;
        bool open = true;
#pragma unroll 1
        for (int step = 0; step < task.steps; step++) {
            const int token = open ? token_before(task, step + 1, b) : task.pad;
            task.replies[size_t(b) * task.steps + step] = token;
            open = open && token != task.eos;
        }
    });
}

// Fetches the encoder's weights to the end of the memory; then as many of the decoder's as find room before them.
DEVICE void begin(Block& block, const Task& task) {
    const float* encoder = task.encoder + size_t(block.index) * task.encoder_floats;
    block.fetch(block.memory + task.encoder_at, encoder, task.encoder_floats);
    if (block.index == 0) block.spread(task.steps * task.batch, [&](int i) { task.keys[i] = LEAST; });
    block.fetched();
    const float* decoder = task.decoder + size_t(block.index) * task.decoder_floats;
    block.fetch(block.memory, decoder, smaller(task.decoder_floats, task.encoder_at));
}
// Fetches the rest of them to where the encoder's were.
DEVICE void fetch_rest(Block& block, const Task& task) {
    const int there = smaller(task.decoder_floats, task.encoder_at);
    const float* decoder = task.decoder + size_t(block.index) * task.decoder_floats;
    block.fetch(block.memory + there, decoder + there, task.decoder_floats - there);
}

DEVICE void answer(Grid& grid, const Task& task) {
    grid.each([&](Block& block) { begin(block, task); });
#pragma unroll 1
    for (int layer = 0; layer < task.encoder_layers; layer++)
#pragma unroll 1
        for (int step = 0; step < task.tokens; step++)
            grid.phase([&](Block& block) {
                if (layer > 0 && step == 0) project(block, task, layer);
                encode(block, task, layer, step);
            });
    grid.each([&](Block& block) {  // the first cell does not read it: its barrier comes early enough
        fetch_rest(block, task);
        sum_ways(block, task);
    });
    if (task.general) {
        grid.barrier();
        grid.each([&](Block& block) { compute_targets(block, task); });
    }
    grid.each([&](Block& block) { block.fetched(); });
#pragma unroll 1
    for (int step = 0; step < task.steps; step++) {
#pragma unroll 1
        for (int layer = 0; layer < task.decoder_layers; layer++)
            grid.phase([&](Block& block) { cell(block, task, layer, step); });
        if (task.batch > 1) grid.phase([&](Block& block) { attend_all(block, task, step); });
        grid.phase([&](Block& block) { mix(block, task, step); });
        grid.phase([&](Block& block) { choose(block, task, step); });
        if (task.eos >= 0 && grid.agree([&](Block& block) { return all_ended(block, task, step); })) break;
    }
    grid.each([&](Block& block) { write(block, task); });
}

#ifdef __CUDACC__
extern "C" __global__ void __launch_bounds__(THREADS, 1) reply(const __grid_constant__ Task task) {
    extern __shared__ float4 memory[];
    Grid grid{{int(blockIdx.x), int(gridDim.x), reinterpret_cast<float*>(memory)}, task.arrived};
    answer(grid, task);
}
#endif
