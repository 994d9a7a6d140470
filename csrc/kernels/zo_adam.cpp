// zo_adam: Adam (Kingma and Ba, arXiv 1412.6980) on the zeroth-order estimate, both averages and the parameter in one pass.
#include "update.h"

namespace mobizo::MOBIZO_ISA {

void zo_adam(const ZoAdamArgs& args, int64_t begin, int64_t end) {
  const F32 minus_lr = broadcast(-args.lr), eps = broadcast(args.eps);
  const F32 beta1 = broadcast(args.beta1), one_minus_beta1 = broadcast(args.one_minus_beta1);
  const F32 beta2 = broadcast(args.beta2), one_minus_beta2 = broadcast(args.one_minus_beta2);
  OuterTables tables;
  alignas(64) float g[kTaskElements];
  for (int64_t task = begin; task < end; ++task) {
    const Tile tile = tile_of(args, task);
    float *exp_avg = args.exp_avg + tile.first, *exp_avg_sq = args.exp_avg_sq + tile.first;
    sum_of_directions(args, tables, tile, g);
    step_param(args, task, tile, g, [&](int64_t at, int64_t i, F32 param, auto... n) {
      const F32 gradient = load(g + i, n...);
      const F32 m = fma(beta1, load(exp_avg + at, n...), one_minus_beta1 * gradient);
      const F32 v = fma(beta2, load(exp_avg_sq + at, n...), one_minus_beta2 * gradient * gradient);
      store(exp_avg + at, m, n...);
      store(exp_avg_sq + at, v, n...);
      return fma(minus_lr, m / (sqrt(v) + eps), param);
    });
  }
}

}  // namespace mobizo::MOBIZO_ISA
