#include "update.h"

namespace mobizo {
namespace {

Tensor zo_momentum_out(Tensor param, Tensor momentum, const Tensor& seeds, const Tensor& coeffs, int64_t stream, double beta,
                       double decay, std::string distribution, Tensor out) {
  constexpr const char* op = "zo_momentum";
  const Directions directions = directions_of(seeds, coeffs, op);
  Updates updates(seeds, coeffs);
  ZoMomentumArgs args{perturb_args(updates, param, directions, stream, decay, distribution, op, "param"), nullptr,
                      static_cast<float>(beta)};
  add_state(updates, momentum, param, op, "momentum");
  add_norm(updates, out, op);
  const Kernels& k = kernels();
  updates.begin(op);
  args.param = updates.data(0);
  args.momentum = updates.floats(1);
  run_with_norm(k.zo_momentum, args, updates, out);
  return out;
}

Tensor zo_momentum(Tensor param, Tensor momentum, const Tensor& seeds, const Tensor& coeffs, int64_t stream, double beta,
                   double decay, std::string distribution) {
  return zo_momentum_out(param, momentum, seeds, coeffs, stream, beta, decay, distribution, empty_norm(param));
}

void foreach_zo_momentum_(std::vector<Tensor> params, std::vector<Tensor> momenta, const Tensor& seeds, const Tensor& coeffs,
                          std::vector<int64_t> streams, double beta, double decay, std::string distribution) {
  constexpr const char* op = "foreach_zo_momentum_";
  check_length(momenta, params.size(), op, "momenta");
  check_length(streams, params.size(), op, "streams");
  const Directions directions = directions_of(seeds, coeffs, op);
  Updates updates(seeds, coeffs);
  std::vector<ZoMomentumArgs> args;
  for (size_t i = 0; i < params.size(); ++i) {
    const std::string name = element_of("params", i);
    args.push_back({perturb_args(updates, params[i], directions, streams[i], decay, distribution, op, name), nullptr,
                    static_cast<float>(beta)});
    add_state(updates, momenta[i], params[i], op, element_of("momenta", i));
  }
  const Kernels& k = kernels();
  updates.begin(op);
  for (size_t i = 0; i < params.size(); ++i) {
    args[i].param = updates.data(2 * i);
    args[i].momentum = updates.floats(2 * i + 1);
  }
  run_foreach(k.zo_momentum, args, updates);
}

}  // namespace
}  // namespace mobizo

MOBIZO_LIBRARY_IMPL(CPU, m) {
  m.impl("zo_momentum", TORCH_BOX(&mobizo::zo_momentum));
  m.impl("zo_momentum.out", TORCH_BOX(&mobizo::zo_momentum_out));
  m.impl("foreach_zo_momentum_", TORCH_BOX(&mobizo::foreach_zo_momentum_));
}
