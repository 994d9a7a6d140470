// perturb: param = decay * param + sum_i coeffs[i] * z(seeds[i]), any number of seeds in one pass over memory.
#include "update.h"

namespace mobizo::MOBIZO_ISA {

void perturb(const PerturbArgs& args, int64_t begin, int64_t end) {
  OuterTables tables;
  alignas(64) float sum[kTaskElements];
  for (int64_t task = begin; task < end; ++task) {
    const Tile tile = tile_of(args, task);
    if (args.dtype == DType::kFloat32 && args.squared_change == nullptr) {
      accumulate(args, tables, tile, args.decay, static_cast<float*>(args.param) + tile.first, tile.stride);
      continue;
    }
    with_type(args.dtype, [&](auto type) {
      const auto* param = static_cast<const decltype(type)*>(args.param) + tile.first;
      each_vector(tile, [&](int64_t at, int64_t i, auto... n) { store(sum + i, load(param + at, n...), n...); });
    });
    accumulate(args, tables, tile, args.decay, sum, tile.count);
    step_param(args, task, tile, sum, [&](int64_t, int64_t i, F32, auto... n) { return load(sum + i, n...); });
  }
}

}  // namespace mobizo::MOBIZO_ISA
