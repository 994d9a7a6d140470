#include "update.h"

namespace mobizo {
namespace {

Tensor zo_sign_out(Tensor param, const Tensor& seeds, const Tensor& coeffs, const Tensor& lr, int64_t stream, double decay,
                   std::string distribution, Tensor out) {
  constexpr const char* op = "zo_sign";
  const Directions directions = directions_of(seeds, coeffs, op);
  Updates updates(seeds, coeffs);
  ZoSignArgs args{perturb_args(updates, param, directions, stream, decay, distribution, op, "param"),
                  learning_rate(updates, lr, op)};
  add_norm(updates, out, op);
  const Kernels& k = kernels();
  updates.begin(op);
  args.param = updates.data(0);
  run_with_norm(k.zo_sign, args, updates, out);
  return out;
}

Tensor zo_sign(Tensor param, const Tensor& seeds, const Tensor& coeffs, const Tensor& lr, int64_t stream, double decay,
               std::string distribution) {
  return zo_sign_out(param, seeds, coeffs, lr, stream, decay, distribution, empty_norm(param));
}

void foreach_zo_sign_(std::vector<Tensor> params, const Tensor& seeds, const Tensor& coeffs, const Tensor& lr,
                      std::vector<int64_t> streams, double decay, std::string distribution) {
  constexpr const char* op = "foreach_zo_sign_";
  check_length(streams, params.size(), op, "streams");
  const Directions directions = directions_of(seeds, coeffs, op);
  Updates updates(seeds, coeffs);
  const float rate = learning_rate(updates, lr, op);
  std::vector<ZoSignArgs> args;
  for (size_t i = 0; i < params.size(); ++i) {
    const std::string name = element_of("params", i);
    args.push_back({perturb_args(updates, params[i], directions, streams[i], decay, distribution, op, name), rate});
  }
  const Kernels& k = kernels();
  updates.begin(op);
  for (size_t i = 0; i < params.size(); ++i) args[i].param = updates.data(i);
  run_foreach(k.zo_sign, args, updates);
}

}  // namespace
}  // namespace mobizo

MOBIZO_LIBRARY_IMPL(CPU, m) {
  m.impl("zo_sign", TORCH_BOX(&mobizo::zo_sign));
  m.impl("zo_sign.out", TORCH_BOX(&mobizo::zo_sign_out));
  m.impl("foreach_zo_sign_", TORCH_BOX(&mobizo::foreach_zo_sign_));
}
