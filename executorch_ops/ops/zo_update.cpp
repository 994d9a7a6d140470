#include <memory>
#include <new>

#include "checks.h"

namespace mobizo::executorch_ops {
namespace {

Tensor& zo_update_out(KernelRuntimeContext& context, Tensor& param, const Tensor& seeds, const Tensor& coeffs, int64_t stream,
                      double decay, std::string_view distribution, Tensor& out) {
  constexpr const char* op = "zo_update";
  PerturbArgs args{};
  ET_KERNEL_CHECK(context, storage_dtype(param, op, "param", &args.dtype), InvalidArgument, out);
  ET_KERNEL_CHECK(context, check_contiguous(param, op, "param"), InvalidArgument, out);
  ET_KERNEL_CHECK(context, check_directions(seeds, coeffs, op), InvalidArgument, out);
  ET_KERNEL_CHECK(context, parse_distribution(distribution, op, &args.distribution), InvalidArgument, out);
  ET_KERNEL_CHECK_MSG(context, out.scalar_type() == ScalarType::Float && out.dim() == 1 && out.numel() == 1, InvalidArgument,
                      out, "mobizo::zo_update: out must be float32 of shape (1,)");
  const Kernels* k = kernels();
  ET_KERNEL_CHECK(context, k != nullptr, NotSupported, out);
  const std::unique_ptr<double[]> squared_change(new (std::nothrow) double[flat_tasks(param.numel())]);
  ET_KERNEL_CHECK_MSG(context, squared_change != nullptr, MemoryAllocationFailed, out, "mobizo::zo_update: out of memory");
  args.param = param.mutable_data_ptr();
  args.numel = param.numel();
  args.seeds = seeds.const_data_ptr<int64_t>();
  args.coeffs = coeffs.const_data_ptr<float>();
  args.count = seeds.numel();
  args.stream = stream;
  args.decay = static_cast<float>(decay);
  args.squared_change = squared_change.get();
  run_update(k->perturb, args, ParallelFor{});
  *out.mutable_data_ptr<float>() = norm_of_change(args);
  return out;
}

}  // namespace
}  // namespace mobizo::executorch_ops

EXECUTORCH_LIBRARY(mobizo, "zo_update.out", mobizo::executorch_ops::zo_update_out);
