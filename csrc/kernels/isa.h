// The kernel table of each instruction set that this build holds; table.cpp is compiled once for each.
#pragma once

#include "kernels.h"

namespace mobizo {

#if defined(__x86_64__)
namespace avx512 {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
#elif defined(__aarch64__)
namespace neon {
extern const Kernels kernels;
}
#endif
namespace scalar {
extern const Kernels kernels;
}

}  // namespace mobizo
