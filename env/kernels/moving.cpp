// Moves rows of many buffers up; called by moving.py.

#include <cstdint>
#include <cstring>

extern "C" {

// In each buffer, [heads, capacity, row bytes], moves the given rows right behind the first `prefix` ones. The rows
// ascend, so no row is overwritten before it has moved.
void specgym_move(char* const* buffers, std::int64_t count, std::int64_t heads, std::int64_t capacity, std::int64_t bytes,
                  std::int64_t prefix, const std::int64_t* rows, std::int64_t moved) {
    for (std::int64_t number = 0; number < count * heads; ++number) {
        char* head = buffers[number / heads] + number % heads * capacity * bytes;
        for (std::int64_t row = 0; row < moved; ++row)
            std::memmove(head + (prefix + row) * bytes, head + rows[row] * bytes, bytes);
    }
}
}
