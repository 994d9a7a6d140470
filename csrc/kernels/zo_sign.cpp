// zo_sign: signSGD (Bernstein et al., arXiv 1802.04434) on the zeroth-order estimate, param = decay * param - lr * sign(g).
#include "update.h"

namespace mobizo::MOBIZO_ISA {
namespace {

// 1, -1, or 0 for a zero of either sign; NaN stays NaN.
MOBIZO_INLINE F32 sign(F32 x) { return select(zero() < x, broadcast(1.0f), select(x < zero(), broadcast(-1.0f), x + zero())); }

}  // namespace

void zo_sign(const ZoSignArgs& args, int64_t begin, int64_t end) {
  const F32 minus_lr = broadcast(-args.lr);
  OuterTables tables;
  alignas(64) float g[kTaskElements];
  for (int64_t task = begin; task < end; ++task) {
    const Tile tile = tile_of(args, task);
    sum_of_directions(args, tables, tile, g);
    // The product with a sign is exact: fused or not, the difference is rounded once.
    step_param(args, task, tile, g,
               [&](int64_t, int64_t i, F32 param, auto... n) { return fma(minus_lr, sign(load(g + i, n...)), param); });
  }
}

}  // namespace mobizo::MOBIZO_ISA
