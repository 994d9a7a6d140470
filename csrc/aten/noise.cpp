#include "checks.h"

namespace mobizo {
namespace {

Tensor noise(std::vector<int64_t> size, const Tensor& seed, int64_t stream, std::string distribution,
             std::optional<ScalarType> dtype) {
  constexpr const char* op = "noise";
  check_cpu(seed, op, "seed");
  MOBIZO_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1, op, "seed must be one int64 value, got ",
               name_of(seed.scalar_type()), " of shape ", shape_of(seed));
  int64_t numel = 1;
  for (const int64_t extent : size) {
    MOBIZO_CHECK(extent >= 0, op, "size must not be negative, got ", extent);
    numel *= extent;
  }
  const ScalarType type = dtype.value_or(ScalarType::Float);
  NoiseArgs args{};
  args.dtype = dtype_of(type, op, "dtype");
  args.distribution = distribution_of(distribution, op);
  args.numel = numel;
  args.seed = *static_cast<const int64_t*>(seed.const_data_ptr());
  args.stream = stream;
  const Kernels& k = kernels();
  Tensor out = torch::stable::empty(size, type, std::nullopt, seed.device());
  args.out = out.mutable_data_ptr();
  torch::stable::parallel_for(0, flat_tasks(numel), 8, [&](int64_t begin, int64_t end) { k.noise(args, begin, end); });
  return out;
}

}  // namespace
}  // namespace mobizo

STABLE_TORCH_LIBRARY_IMPL(mobizo, CPU, m) { m.impl("noise", TORCH_BOX(&mobizo::noise)); }
