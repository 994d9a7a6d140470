#include "checks.h"

#include <cstdint>

namespace mobizo::executorch_ops {

using executorch::runtime::toString;

const Kernels* kernels() {
  const char* error = nullptr;
  const Kernels* selected = select_kernels(&error);
  if (selected == nullptr) ET_LOG(Error, "%s", error);
  return selected;
}

bool storage_dtype(const Tensor& t, const char* op, const char* argument, DType* dtype) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      *dtype = DType::kFloat32;
      return true;
    case ScalarType::BFloat16:
      *dtype = DType::kBFloat16;
      return true;
    case ScalarType::Half:
      *dtype = DType::kFloat16;
      return true;
    default:
      ET_LOG(Error, "mobizo::%s: %s must be float32, bfloat16 or float16, got %s", op, argument, toString(t.scalar_type()));
      return false;
  }
}

bool check_storage(const Tensor& t, const char* op, const char* argument) {
  int64_t numel = 1;
  bool sound = true;
  for (const auto size : t.sizes()) sound = sound && size >= 0 && !__builtin_mul_overflow(numel, int64_t{size}, &numel);
  ET_CHECK_OR_RETURN_FALSE(sound && numel == t.numel(), "mobizo::%s: %s has impossible sizes", op, argument);
  ET_CHECK_OR_RETURN_FALSE(numel == 0 || t.const_data_ptr() != nullptr, "mobizo::%s: %s has no memory", op, argument);
  ET_CHECK_OR_RETURN_FALSE(executorch::runtime::tensor_is_contiguous(t), "mobizo::%s: %s must be contiguous", op, argument);
  return true;
}

bool check_directions(const Tensor& seeds, const Tensor& coeffs, const char* op) {
  ET_CHECK_OR_RETURN_FALSE(seeds.dim() == 1 && seeds.scalar_type() == ScalarType::Long,
                           "mobizo::%s: seeds must be int64 of one dimension, got %s of %d dimensions", op,
                           toString(seeds.scalar_type()), static_cast<int>(seeds.dim()));
  ET_CHECK_OR_RETURN_FALSE(coeffs.dim() == 1 && coeffs.scalar_type() == ScalarType::Float,
                           "mobizo::%s: coeffs must be float32 of one dimension, got %s of %d dimensions", op,
                           toString(coeffs.scalar_type()), static_cast<int>(coeffs.dim()));
  ET_CHECK_OR_RETURN_FALSE(coeffs.numel() == seeds.numel(), "mobizo::%s: coeffs must have the length of seeds, %d, got %d", op,
                           static_cast<int>(seeds.numel()), static_cast<int>(coeffs.numel()));
  return check_storage(seeds, op, "seeds") && check_storage(coeffs, op, "coeffs");
}

bool check_apart(const Tensor& written, const char* argument, const Tensor& other, const char* other_argument, const char* op) {
  const auto begin = reinterpret_cast<uintptr_t>(written.const_data_ptr());
  const auto other_begin = reinterpret_cast<uintptr_t>(other.const_data_ptr());
  const bool apart = written.nbytes() == 0 || other.nbytes() == 0 || begin + written.nbytes() <= other_begin ||
                     other_begin + other.nbytes() <= begin;
  ET_CHECK_OR_RETURN_FALSE(apart, "mobizo::%s: %s and %s must not share memory, but they overlap", op, argument,
                           other_argument);
  return true;
}

bool same_elements(const Tensor& a, const Tensor& b) {
  return a.const_data_ptr() == b.const_data_ptr() && a.scalar_type() == b.scalar_type() && a.sizes().equals(b.sizes());
}

bool parse_distribution(std::string_view name, const char* op, Distribution* distribution) {
  ET_CHECK_OR_RETURN_FALSE(find_distribution(name, distribution),
                           "mobizo::%s: distribution must be " MOBIZO_DISTRIBUTIONS ", got '%.*s'", op,
                           static_cast<int>(name.size()), name.data());
  return true;
}

}  // namespace mobizo::executorch_ops
