#include "library.h"
#include "update.h"

namespace mobizo::executorch_ops {
namespace {

Tensor& zo_update_out(KernelRuntimeContext& context, Tensor& param, const Tensor& seeds, const Tensor& coeffs, int64_t stream,
                      double decay, std::string_view distribution, Tensor& out) {
  constexpr const char* op = "zo_update";
  PerturbArgs args{};
  ET_KERNEL_CHECK(context, update_args(param, seeds, coeffs, stream, decay, distribution, op, &args), InvalidArgument, out);
  ET_KERNEL_CHECK(context, check_one_float(out, op, "out"), InvalidArgument, out);
  ET_KERNEL_CHECK(context, check_all_apart({{param, "param"}, {out, "out"}}, {{seeds, "seeds"}, {coeffs, "coeffs"}}, op),
                  InvalidArgument, out);
  const Error error = run_with_norm(&Kernels::perturb, args, out.mutable_data_ptr<float>());
  if (error != Error::Ok) context.fail(error);
  return out;
}

}  // namespace
}  // namespace mobizo::executorch_ops

MOBIZO_EXECUTORCH_OP("zo_update.out", mobizo::executorch_ops::zo_update_out);
