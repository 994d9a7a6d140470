#include <cmath>

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
  torch::stable::parallel_for(0, flat_tasks(args.numel), kPerturbGrain,
                              [&](int64_t begin, int64_t end) { k.perturb(args, begin, end); });
  update.finish();
  double sum = 0.0;  // in the order of the tasks: the same bits for any number of threads
  for (const double s : squared_change) sum += s;
  *static_cast<float*>(out.mutable_data_ptr()) = static_cast<float>(std::sqrt(sum));
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
