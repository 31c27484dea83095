// The kernel as C++, each of its threads in turn: what the tests run on the CPU.

#define __device__
#define __global__

struct Dim {
    unsigned x, y, z;
};
static thread_local Dim blockDim, blockIdx, threadIdx;

#include "kernel.cu"

// `grid`, `block`: as they are launched.
template <typename Number>
static void run(void (*kernel)(const unsigned char *, Number *, unsigned, unsigned), const unsigned char *staged,
                Number *input, const unsigned *size, const unsigned *grid, const unsigned *block)
{
    blockDim = {block[0], block[1], block[2]};
    for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
                for (threadIdx.y = 0; threadIdx.y < block[1]; ++threadIdx.y)
                    for (threadIdx.x = 0; threadIdx.x < block[0]; ++threadIdx.x)
                        kernel(staged, input, size[0], size[1]);
}

extern "C" void run_single(const unsigned char *staged, unsigned *input, const unsigned *size, const unsigned *grid,
                           const unsigned *block)
{
    run(write_single, staged, input, size, grid, block);
}

extern "C" void run_half(const unsigned char *staged, unsigned short *input, const unsigned *size, const unsigned *grid,
                         const unsigned *block)
{
    run(write_half, staged, input, size, grid, block);
}
