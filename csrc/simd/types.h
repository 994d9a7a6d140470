// Storage types and the small integer helpers that every instruction set shares. Knows nothing.
#pragma once

#include <cstdint>
#include <cstring>

// Every function of an instruction set is forced inline into its caller: no symbol compiled with, say, AVX-512 flags is ever
// emitted where the linker could hand it to a machine without AVX-512.
#define MOBIZO_INLINE static inline __attribute__((always_inline))

namespace mobizo {

// 16-bit floats are bit patterns here; arithmetic happens in float32 only.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

}  // namespace mobizo
