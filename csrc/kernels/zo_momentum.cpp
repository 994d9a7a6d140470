// zo_momentum: heavy-ball momentum (Polyak, 1964) on the zeroth-order estimate, m = beta * m + g and param = decay * param + m.
#include "update.h"

namespace mobizo::MOBIZO_ISA {

void zo_momentum(const ZoMomentumArgs& args, int64_t begin, int64_t end) {
  alignas(64) float change[kTaskElements];
  for (int64_t task = begin; task < end; ++task) {
    const Tile tile = tile_of(args, task);
    float* momentum = args.momentum + tile.first;
    accumulate(args, tile, args.beta, momentum);
    step_param(args, task, change, [&](int64_t i, F32 param, auto... n) { return param + load(momentum + i, n...); });
  }
}

}  // namespace mobizo::MOBIZO_ISA
