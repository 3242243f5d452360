// The kernel on a CPU: the same source, called as tests/test_persistent.py does.
#include "reply.cu"

extern "C" {

int task_size() { return int(sizeof(Task)); }

// Answers with as many blocks, each with this many floats of shared memory; returns the number of barriers.
int emulate(const Task* task, int blocks, int floats, int backwards) {
    reversed = backwards;
    barriers = 0;
    Grid grid;
    grid.blocks.reserve(blocks);
    for (int i = 0; i < blocks; i++) grid.blocks.emplace_back(i, blocks, floats);
    answer(grid, *task);
    grid.run();
    return barriers;
}
}
