#include "update.h"

namespace mobizo {
namespace {

Tensor zo_adam_out(Tensor param, Tensor exp_avg, Tensor exp_avg_sq, const Tensor& seeds, const Tensor& coeffs, const Tensor& lr,
                   int64_t stream, double beta1, double beta2, double eps, double decay, std::string distribution, Tensor out) {
  constexpr const char* op = "zo_adam";
  const Directions directions = directions_of(seeds, coeffs, op);
  Updates updates(seeds, coeffs);
  ZoAdamArgs args{};
  static_cast<PerturbArgs&>(args) = perturb_args(updates, param, directions, stream, decay, distribution, op, "param");
  set_adam(args, learning_rate(updates, lr, op), beta1, beta2, eps);
  add_state(updates, exp_avg, param, op, "exp_avg");
  add_state(updates, exp_avg_sq, param, op, "exp_avg_sq");
  add_norm(updates, out, op);
  const Kernels& k = kernels();
  updates.begin(op);
  args.param = updates.data(0);
  args.exp_avg = updates.floats(1);
  args.exp_avg_sq = updates.floats(2);
  run_with_norm(k.zo_adam, args, updates, out);
  return out;
}

Tensor zo_adam(Tensor param, Tensor exp_avg, Tensor exp_avg_sq, const Tensor& seeds, const Tensor& coeffs, const Tensor& lr,
               int64_t stream, double beta1, double beta2, double eps, double decay, std::string distribution) {
  return zo_adam_out(param, exp_avg, exp_avg_sq, seeds, coeffs, lr, stream, beta1, beta2, eps, decay, distribution,
                     empty_norm(param));
}

void foreach_zo_adam_(std::vector<Tensor> params, std::vector<Tensor> exp_avgs, std::vector<Tensor> exp_avg_sqs,
                      const Tensor& seeds, const Tensor& coeffs, const Tensor& lr, std::vector<int64_t> streams, double beta1,
                      double beta2, double eps, double decay, std::string distribution) {
  constexpr const char* op = "foreach_zo_adam_";
  check_length(exp_avgs, params.size(), op, "exp_avgs");
  check_length(exp_avg_sqs, params.size(), op, "exp_avg_sqs");
  check_length(streams, params.size(), op, "streams");
  const Directions directions = directions_of(seeds, coeffs, op);
  Updates updates(seeds, coeffs);
  const float rate = learning_rate(updates, lr, op);
  std::vector<ZoAdamArgs> args(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    const std::string name = element_of("params", i);
    static_cast<PerturbArgs&>(args[i]) =
        perturb_args(updates, params[i], directions, streams[i], decay, distribution, op, name);
    set_adam(args[i], rate, beta1, beta2, eps);
    add_state(updates, exp_avgs[i], params[i], op, element_of("exp_avgs", i));
    add_state(updates, exp_avg_sqs[i], params[i], op, element_of("exp_avg_sqs", i));
  }
  const Kernels& k = kernels();
  updates.begin(op);
  for (size_t i = 0; i < params.size(); ++i) {
    args[i].param = updates.data(3 * i);
    args[i].exp_avg = updates.floats(3 * i + 1);
    args[i].exp_avg_sq = updates.floats(3 * i + 2);
  }
  run_foreach(k.zo_adam, args, updates);
}

}  // namespace
}  // namespace mobizo

MOBIZO_LIBRARY_IMPL(CPU, m) {
  m.impl("zo_adam", TORCH_BOX(&mobizo::zo_adam));
  m.impl("zo_adam.out", TORCH_BOX(&mobizo::zo_adam_out));
  m.impl("foreach_zo_adam_", TORCH_BOX(&mobizo::foreach_zo_adam_));
}
