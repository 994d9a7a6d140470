#include "perturb.h"

namespace mobizo {
namespace {

Tensor zo_update_out(Tensor param, const Tensor& seeds, const Tensor& coeffs, int64_t stream, double decay,
                     std::string distribution, Tensor out) {
  constexpr const char* op = "zo_update";
  const Directions directions = directions_of(seeds, coeffs, op);
  PerturbArgs args = perturb_args(param, directions, stream, decay, distribution, op, "param");
  check_cpu(out, op, "out");
  MOBIZO_CHECK(out.scalar_type() == ScalarType::Float && out.dim() == 1 && out.numel() == 1, op,
               "out must be float32 of shape (1,), got ", name_of(out.scalar_type()), " of shape ", shape_of(out));
  const Kernels& k = kernels();
  ContiguousUpdate update(param);
  std::vector<double> squared_change(flat_tasks(args.numel));
  args.param = update.data();
  args.squared_change = squared_change.data();
  run_perturb(k, args, ParallelFor{});
  update.finish();
  *static_cast<float*>(out.mutable_data_ptr()) = norm_of_change(args);
  return out;
}

Tensor zo_update(Tensor param, const Tensor& seeds, const Tensor& coeffs, int64_t stream, double decay,
                 std::string distribution) {
  const Tensor norm = torch::stable::empty({1}, ScalarType::Float, std::nullopt, param.device());
  return zo_update_out(param, seeds, coeffs, stream, decay, distribution, norm);
}

}  // namespace
}  // namespace mobizo

STABLE_TORCH_LIBRARY_IMPL(mobizo, CPU, m) {
  m.impl("zo_update", TORCH_BOX(&mobizo::zo_update));
  m.impl("zo_update.out", TORCH_BOX(&mobizo::zo_update_out));
}
