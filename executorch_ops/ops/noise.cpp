#include "library.h"

namespace mobizo::executorch_ops {
namespace {

bool check_size(ArrayRef<int64_t> size, const Tensor& out) {
  ET_CHECK_OR_RETURN_FALSE(size.size() <= executorch::runtime::kTensorDimensionLimit,
                           "mobizo::noise: size must have at most %d dimensions, got %d",
                           static_cast<int>(executorch::runtime::kTensorDimensionLimit), static_cast<int>(size.size()));
  for (const int64_t extent : size)
    ET_CHECK_OR_RETURN_FALSE(extent >= 0, "mobizo::noise: size must not be negative, got %lld", static_cast<long long>(extent));
  return check_storage(out, "noise", "out");
}

bool check_seed(const Tensor& seed) {
  ET_CHECK_OR_RETURN_FALSE(seed.scalar_type() == ScalarType::Long && seed.numel() == 1,
                           "mobizo::noise: seed must be one int64 value, got %d of %s", static_cast<int>(seed.numel()),
                           executorch::runtime::toString(seed.scalar_type()));
  return check_storage(seed, "noise", "seed");
}

Tensor& noise_out(KernelRuntimeContext& context, ArrayRef<int64_t> size, const Tensor& seed, int64_t stream,
                  std::string_view distribution, std::optional<ScalarType> dtype, Tensor& out) {
  NoiseArgs args{};
  ET_KERNEL_CHECK(context, check_seed(seed), InvalidArgument, out);
  ET_KERNEL_CHECK(context, parse_distribution(distribution, "noise", &args.distribution), InvalidArgument, out);
  ET_KERNEL_CHECK(context, storage_dtype(out, "noise", "out", &args.dtype), InvalidArgument, out);
  ET_KERNEL_CHECK_MSG(context, out.scalar_type() == dtype.value_or(ScalarType::Float), InvalidArgument, out,
                      "mobizo::noise: out must have the asked dtype");
  ET_KERNEL_CHECK(context, check_size(size, out), InvalidArgument, out);
  const Kernels* k = kernels();
  ET_KERNEL_CHECK(context, k != nullptr, NotSupported, out);
  SizesType sizes[executorch::runtime::kTensorDimensionLimit];
  for (size_t d = 0; d < size.size(); ++d) sizes[d] = static_cast<SizesType>(size[d]);
  ET_KERNEL_CHECK_MSG(context, executorch::runtime::resize_tensor(out, {sizes, size.size()}) == Error::Ok, InvalidArgument, out,
                      "mobizo::noise: out must have the shape of size, or room for it");
  ET_KERNEL_CHECK(context, check_apart(out, "out", seed, "seed", "noise"), InvalidArgument, out);
  args.out = out.mutable_data_ptr();
  args.numel = out.numel();
  args.seed = *seed.const_data_ptr<int64_t>();
  args.stream = stream;
  set_distribution(args, args.distribution, out.dim(), out.dim() > 0 ? out.size(0) : 1);
  ET_KERNEL_CHECK_MSG(context, run_noise(*k, args, ParallelFor{}), MemoryAllocationFailed, out, "mobizo::noise: out of memory");
  return out;
}

}  // namespace
}  // namespace mobizo::executorch_ops

MOBIZO_EXECUTORCH_OP("noise.out", mobizo::executorch_ops::noise_out);
