// Writes a batch into the model's input: pictures letterboxed, prepared ones as they are, black behind them.
//
// The integers are those of yolo-vision's letterbox, which computed the taps; the numbers are looked up in a table that the
// CPU filled, so that no arithmetic of the GPU's floats decides a bit. One thread a pixel, one block layer an image.
//
// NVRTC compiles it when a session is opened, and the tests compile it as C++ (host.cpp). What is staged where is told in
// staging.rs, which has the same constants and the same order of fields.

enum Kind { BLACK, LEVELS, NUMBERS, PICTURE };

// Bytes of the table before the images: 256 numbers of 32 bits, of which a model in 16 bits takes the lower half.
static const unsigned TABLE_BYTES = 256 * 4;
// Grey of the padding.
static const unsigned PADDING = 114;

// An image of the batch. Places count bytes from the start of what is staged.
struct Image {
    unsigned kind;
    unsigned content;         // place of its bytes
    unsigned columns, rows;   // places of the taps
    unsigned row_bytes;       // of the picture
    unsigned left, top, width, height; // of the resized picture in the model's input
};

// Two neighbouring columns or rows of a picture and their weights in 1/2048.
struct Tap {
    unsigned first, second;
    int first_weight, second_weight;
};

// A channel of a resized row's pixel, in 1/128 of a level.
static __device__ int blend(const unsigned char *row, Tap column, unsigned channel)
{
    const int sum = row[3 * column.first + channel] * column.first_weight +
                    row[3 * column.second + channel] * column.second_weight;
    return sum >> 4;
}

static __device__ unsigned resized(const unsigned char *picture, unsigned row_bytes, Tap column, Tap row, unsigned channel)
{
    const int upper = blend(picture + (unsigned long long)row.first * row_bytes, column, channel);
    const int lower = blend(picture + (unsigned long long)row.second * row_bytes, column, channel);
    return (((row.first_weight * upper) >> 16) + ((row.second_weight * lower) >> 16) + 2) >> 2;
}

// `input`: [batch, 3, height, width].
template <typename Number>
static __device__ void write(const unsigned char *staged, Number *input, unsigned width, unsigned height)
{
    const unsigned x = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) {
        return;
    }
    const unsigned *table = (const unsigned *)staged;
    const Image image = ((const Image *)(staged + TABLE_BYTES))[blockIdx.z];
    const unsigned char *content = staged + image.content;
    const unsigned long long plane = (unsigned long long)width * height;
    const unsigned long long pixel = (unsigned long long)y * width + x;
    Number *numbers = input + 3 * plane * blockIdx.z + pixel;
    // Left of and above the resized picture these wrap around, and are no smaller than its sides.
    const unsigned column = x - image.left, row = y - image.top;
    const bool inside = image.kind == PICTURE && column < image.width && row < image.height;
    Tap across = {}, down = {};
    if (inside) {
        across = ((const Tap *)(staged + image.columns))[column];
        down = ((const Tap *)(staged + image.rows))[row];
    }
    for (unsigned channel = 0; channel < 3; ++channel) {
        const unsigned long long value = channel * plane + pixel;
        Number number = 0;
        if (inside) {
            number = (Number)table[resized(content, image.row_bytes, across, down, channel)];
        } else if (image.kind == PICTURE) {
            number = (Number)table[PADDING];
        } else if (image.kind == LEVELS) {
            number = (Number)table[content[value]];
        } else if (image.kind == NUMBERS) {
            number = ((const Number *)content)[value];
        }
        numbers[channel * plane] = number;
    }
}

// For models in 32 bits.
extern "C" __global__ void write_single(const unsigned char *staged, unsigned *input, unsigned width, unsigned height)
{
    write(staged, input, width, height);
}

// For models in 16 bits.
extern "C" __global__ void write_half(const unsigned char *staged, unsigned short *input, unsigned width, unsigned height)
{
    write(staged, input, width, height);
}
