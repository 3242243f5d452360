"""The whole reply as one CUDA kernel, its weights kept in the shared memory of all multiprocessors."""
