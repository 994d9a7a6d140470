// zo_momentum: heavy-ball momentum (Polyak, 1964) on the zeroth-order estimate, m = beta * m + g and param = decay * param + m.
#include "update.h"

namespace mobizo::MOBIZO_ISA {

void zo_momentum(const ZoMomentumArgs& args, int64_t begin, int64_t end) {
  OuterTables tables;
  alignas(64) float change[kTaskElements];
  for (int64_t task = begin; task < end; ++task) {
    const Tile tile = tile_of(args, task);
    float* momentum = args.momentum + tile.first;
    accumulate(args, tables, tile, args.beta, momentum, tile.stride);
    step_param(args, task, tile, change,
               [&](int64_t at, int64_t, F32 param, auto... n) { return param + load(momentum + at, n...); });
  }
}

}  // namespace mobizo::MOBIZO_ISA
