#include <limits>

#include "inplace.h"

namespace mobizo {
namespace {

NoiseArgs noise_args(const std::vector<int64_t>& size, const Tensor& seed, int64_t stream, const std::string& distribution,
                     ScalarType type) {
  constexpr const char* op = "noise";
  check_cpu(seed, op, "seed");
  MOBIZO_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1, op, "seed must be one int64 value, got ",
               name_of(seed.scalar_type()), " of shape ", shape_of(seed));
  NoiseArgs args{};
  args.numel = 1;
  int64_t bytes = 4;  // at most, per element; of the sizes that are not 0, as torch counts its strides
  for (const int64_t extent : size) {
    MOBIZO_CHECK(extent >= 0, op, "size must not be negative, got ", extent);
    MOBIZO_CHECK(extent <= std::numeric_limits<int64_t>::max() / bytes, op, "size must have fewer than 2^61 elements");
    bytes *= std::max<int64_t>(extent, 1);
    args.numel *= extent;
  }
  args.dtype = dtype_of(type, op, "dtype");
  set_distribution(args, distribution_of(distribution, op), static_cast<int64_t>(size.size()), size.empty() ? 1 : size[0]);
  args.seed = *static_cast<const int64_t*>(seed.const_data_ptr());
  args.stream = stream;
  return args;
}

Tensor noise(std::vector<int64_t> size, const Tensor& seed, int64_t stream, std::string distribution,
             std::optional<ScalarType> dtype) {
  const ScalarType type = dtype.value_or(ScalarType::Float);
  NoiseArgs args = noise_args(size, seed, stream, distribution, type);
  const Kernels& k = kernels();
  Tensor out = torch::stable::empty(size, type, std::nullopt, seed.device());
  args.out = out.mutable_data_ptr();
  if (!run_noise(k, args, ParallelFor{})) throw std::bad_alloc();
  return out;
}

Tensor noise_out(std::vector<int64_t> size, const Tensor& seed, int64_t stream, std::string distribution,
                 std::optional<ScalarType> dtype, Tensor out) {
  constexpr const char* op = "noise";
  const ScalarType type = dtype.value_or(ScalarType::Float);
  NoiseArgs args = noise_args(size, seed, stream, distribution, type);
  check_cpu(out, op, "out");
  check_no_overlap(out, op, "out");
  bool same = out.dim() == static_cast<int64_t>(size.size());
  for (int64_t d = 0; same && d < out.dim(); ++d) same = out.size(d) == size[d];
  MOBIZO_CHECK(same, op, "out must have shape size, which has ", args.numel, " elements, got shape ", shape_of(out));
  MOBIZO_CHECK(out.scalar_type() == type, op, "out must be ", name_of(type), ", got ", name_of(out.scalar_type()));
  check_apart({out, "out"}, {seed, "seed"}, op);
  check_no_gradient(out, op, "out");
  const Kernels& k = kernels();
  announce_change(out, op, "out");
  ContiguousUpdate update(out);
  args.out = update.data();
  if (!run_noise(k, args, ParallelFor{})) throw std::bad_alloc();
  update.finish();
  return out;
}

}  // namespace
}  // namespace mobizo

MOBIZO_LIBRARY_IMPL(CPU, m) {
  m.impl("noise", TORCH_BOX(&mobizo::noise));
  m.impl("noise.out", TORCH_BOX(&mobizo::noise_out));
}
