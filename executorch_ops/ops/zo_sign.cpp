#include "library.h"
#include "update.h"

namespace mobizo::executorch_ops {
namespace {

Tensor& zo_sign_out(KernelRuntimeContext& context, Tensor& param, const Tensor& seeds, const Tensor& coeffs, const Tensor& lr,
                    int64_t stream, double decay, std::string_view distribution, Tensor& out) {
  constexpr const char* op = "zo_sign";
  ZoSignArgs args{};
  ET_KERNEL_CHECK(context, update_args(param, seeds, coeffs, stream, decay, distribution, op, &args), InvalidArgument, out);
  ET_KERNEL_CHECK(context, check_one_float(lr, op, "lr"), InvalidArgument, out);
  ET_KERNEL_CHECK(context, check_one_float(out, op, "out"), InvalidArgument, out);
  ET_KERNEL_CHECK(context,
                  check_all_apart({{param, "param"}, {out, "out"}}, {{seeds, "seeds"}, {coeffs, "coeffs"}, {lr, "lr"}}, op),
                  InvalidArgument, out);
  args.lr = *lr.const_data_ptr<float>();
  const Error error = run_with_norm(&Kernels::zo_sign, args, out.mutable_data_ptr<float>());
  if (error != Error::Ok) context.fail(error);
  return out;
}

}  // namespace
}  // namespace mobizo::executorch_ops

MOBIZO_EXECUTORCH_OP("zo_sign.out", mobizo::executorch_ops::zo_sign_out);
