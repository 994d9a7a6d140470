// signs: the bits that directions "outer" are made from, z = u v^T with u and v of signs. A matrix of [out, in] takes out + in
// of them for each seed, where independent signs would take out * in.
#include "../noise/rademacher.h"
#include "entry.h"

namespace mobizo::MOBIZO_ISA {

static_assert(kSignBlock % kRademacherBlock == 0);

void signs(const SignsArgs& args, int64_t begin, int64_t end) {
  for (int64_t k = begin; k < end; ++k) {
    const NoiseStream stream = noise_stream(static_cast<uint64_t>(args.seeds[k]), static_cast<uint64_t>(args.stream));
    rademacher_bits(stream, 0, args.numel, args.signs + k * sign_bytes(args.numel));
  }
}

}  // namespace mobizo::MOBIZO_ISA
