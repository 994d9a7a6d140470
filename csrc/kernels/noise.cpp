// noise: materialises z, for tests, debugging and whoever wants the values themselves.
#include "../noise/visit.h"
#include "entry.h"

namespace mobizo::MOBIZO_ISA {

void noise(const NoiseArgs& args, int64_t begin, int64_t end) {
  const NoiseStream stream = noise_stream(static_cast<uint64_t>(args.seed), static_cast<uint64_t>(args.stream));
  const int64_t first = begin * kTaskElements, last = min(end * kTaskElements, args.numel);
  with_type(args.dtype, [&](auto type) {
    auto* out = static_cast<decltype(type)*>(args.out) + first;
    visit_noise(args.distribution, stream, first, last - first, [&](int64_t i, F32 z, auto... n) { store(out + i, z, n...); });
  });
}

}  // namespace mobizo::MOBIZO_ISA
