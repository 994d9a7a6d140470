// Chooses the instruction set once, on first use.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace mobizo {
namespace {

struct Candidate {
  const Kernels* kernels;
  bool supported;
};

#if defined(__x86_64__)
// Clang before 17 has no name for it. AVX2, asked for first, says that the system saves the registers.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
[[maybe_unused]] bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }
[[maybe_unused]] bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

struct Selection {
  const Kernels* kernels = nullptr;
  char error[256] = {};
};

Selection select() {
  // Best first.
  const Candidate candidates[] = {
#if defined(MOBIZO_HAS_AVX512)
      {&avx512::kernels, has_avx512()},
#endif
#if defined(MOBIZO_HAS_AVX2)
      {&avx2::kernels, has_avx2()},
#endif
#if defined(MOBIZO_HAS_NEON)
      {&neon::kernels, true},
#endif
      {&scalar::kernels, true},
  };
  Selection selection;
  const char* wanted = std::getenv("MOBIZO_CPU");
  const bool any = wanted == nullptr || *wanted == '\0';
  char available[64] = {};
  for (const Candidate& candidate : candidates) {
    if (!candidate.supported) continue;
    if (any || std::strcmp(wanted, candidate.kernels->name) == 0) {
      selection.kernels = candidate.kernels;
      return selection;
    }
    const size_t used = std::strlen(available);
    std::snprintf(available + used, sizeof available - used, "%s%s", used ? ", " : "", candidate.kernels->name);
  }
  std::snprintf(selection.error, sizeof selection.error,
                "MOBIZO_CPU: expected an instruction set that this machine has (%s), got '%.100s'", available, wanted);
  return selection;
}

}  // namespace

const Kernels* select_kernels(const char** error) {
  static const Selection selection = select();
  *error = selection.error;
  return selection.kernels;
}

}  // namespace mobizo
