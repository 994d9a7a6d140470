#include "update.h"

namespace mobizo {
namespace {

Tensor zo_update_out(Tensor param, const Tensor& seeds, const Tensor& coeffs, int64_t stream, double decay,
                     std::string distribution, Tensor out) {
  constexpr const char* op = "zo_update";
  const Directions directions = directions_of(seeds, coeffs, op);
  Updates updates(seeds, coeffs);
  PerturbArgs args = perturb_args(updates, param, directions, stream, decay, distribution, op, "param");
  add_norm(updates, out, op);
  const Kernels& k = kernels();
  updates.begin(op);
  args.param = updates.data(0);
  run_with_norm(k.perturb, args, updates, out);
  return out;
}

Tensor zo_update(Tensor param, const Tensor& seeds, const Tensor& coeffs, int64_t stream, double decay,
                 std::string distribution) {
  return zo_update_out(param, seeds, coeffs, stream, decay, distribution, empty_norm(param));
}

}  // namespace
}  // namespace mobizo

MOBIZO_LIBRARY_IMPL(CPU, m) {
  m.impl("zo_update", TORCH_BOX(&mobizo::zo_update));
  m.impl("zo_update.out", TORCH_BOX(&mobizo::zo_update_out));
}
