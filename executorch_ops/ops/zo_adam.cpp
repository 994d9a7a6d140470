#include "library.h"
#include "update.h"

namespace mobizo::executorch_ops {
namespace {

Tensor& zo_adam_out(KernelRuntimeContext& context, Tensor& param, Tensor& exp_avg, Tensor& exp_avg_sq, const Tensor& seeds,
                    const Tensor& coeffs, const Tensor& lr, int64_t stream, double beta1, double beta2, double eps,
                    double decay, std::string_view distribution, Tensor& out) {
  constexpr const char* op = "zo_adam";
  ZoAdamArgs args{};
  ET_KERNEL_CHECK(context, update_args(param, seeds, coeffs, stream, decay, distribution, op, &args), InvalidArgument, out);
  ET_KERNEL_CHECK(context, check_state(exp_avg, param, op, "exp_avg", &args.exp_avg), InvalidArgument, out);
  ET_KERNEL_CHECK(context, check_state(exp_avg_sq, param, op, "exp_avg_sq", &args.exp_avg_sq), InvalidArgument, out);
  ET_KERNEL_CHECK(context, check_one_float(lr, op, "lr"), InvalidArgument, out);
  ET_KERNEL_CHECK(context, check_one_float(out, op, "out"), InvalidArgument, out);
  ET_KERNEL_CHECK(context,
                  check_all_apart({{param, "param"}, {exp_avg, "exp_avg"}, {exp_avg_sq, "exp_avg_sq"}, {out, "out"}},
                                  {{seeds, "seeds"}, {coeffs, "coeffs"}, {lr, "lr"}}, op),
                  InvalidArgument, out);
  set_adam(args, *lr.const_data_ptr<float>(), beta1, beta2, eps);
  const Error error = run_with_norm(&Kernels::zo_adam, args, out.mutable_data_ptr<float>());
  if (error != Error::Ok) context.fail(error);
  return out;
}

}  // namespace
}  // namespace mobizo::executorch_ops

MOBIZO_EXECUTORCH_OP("zo_adam.out", mobizo::executorch_ops::zo_adam_out);
