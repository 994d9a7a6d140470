#include "library.h"
#include "update.h"

namespace mobizo::executorch_ops {
namespace {

Tensor& zo_momentum_out(KernelRuntimeContext& context, Tensor& param, Tensor& momentum, const Tensor& seeds,
                        const Tensor& coeffs, int64_t stream, double beta, double decay, std::string_view distribution,
                        Tensor& out) {
  constexpr const char* op = "zo_momentum";
  ZoMomentumArgs args{};
  ET_KERNEL_CHECK(context, update_args(param, seeds, coeffs, stream, decay, distribution, op, &args), InvalidArgument, out);
  ET_KERNEL_CHECK(context, check_state(momentum, param, op, "momentum", &args.momentum), InvalidArgument, out);
  ET_KERNEL_CHECK(context, check_one_float(out, op, "out"), InvalidArgument, out);
  ET_KERNEL_CHECK(
      context,
      check_all_apart({{param, "param"}, {momentum, "momentum"}, {out, "out"}}, {{seeds, "seeds"}, {coeffs, "coeffs"}}, op),
      InvalidArgument, out);
  args.beta = static_cast<float>(beta);
  const Error error = run_with_norm(&Kernels::zo_momentum, args, out.mutable_data_ptr<float>());
  if (error != Error::Ok) context.fail(error);
  return out;
}

}  // namespace
}  // namespace mobizo::executorch_ops

MOBIZO_EXECUTORCH_OP("zo_momentum.out", mobizo::executorch_ops::zo_momentum_out);
