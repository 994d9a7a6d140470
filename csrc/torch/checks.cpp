#include "checks.h"

#include <pthread.h>

#include <atomic>

namespace mobizo {

std::string shape_of(const Tensor& t) {
  std::ostringstream out;
  out << '(';
  for (int64_t d = 0; d < t.dim(); ++d) out << (d ? ", " : "") << t.size(d);
  out << (t.dim() == 1 ? ",)" : ")");
  return out.str();
}

std::string name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    default:
      return torch::headeronly::toString(type);
  }
}

DType dtype_of(ScalarType type, const char* op, const char* argument) {
  switch (type) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      fail(op, argument, " must be float32, bfloat16 or float16, got ", name_of(type));
  }
}

DType dtype_of(const Tensor& t, const char* op, const char* argument) { return dtype_of(t.scalar_type(), op, argument); }

Distribution distribution_of(const std::string& name, const char* op) {
  Distribution distribution{};
  MOBIZO_CHECK(find_distribution(name, &distribution), op, "distribution must be " MOBIZO_DISTRIBUTIONS ", got '", name, "'");
  return distribution;
}

void check_cpu(const Tensor& t, const char* op, const char* argument) {
  MOBIZO_CHECK(t.is_cpu(), op, argument, " must be on the CPU like the other tensors");
}

const Kernels& kernels() {
  const char* error = nullptr;
  const Kernels* selected = select_kernels(&error);
  if (selected == nullptr) throw std::runtime_error(error);
  return *selected;
}

namespace {

std::atomic<bool> forked{false};
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

bool in_forked_child() { return forked.load(std::memory_order_relaxed); }

int64_t thread_count() { return in_forked_child() ? 1 : torch::stable::get_num_threads(); }

Directions directions_of(const Tensor& seeds, const Tensor& coeffs, const char* op) {
  check_cpu(seeds, op, "seeds");
  check_cpu(coeffs, op, "coeffs");
  MOBIZO_CHECK(seeds.dim() == 1, op, "seeds must have one dimension, got shape ", shape_of(seeds));
  MOBIZO_CHECK(seeds.scalar_type() == ScalarType::Long, op, "seeds must be int64, got ", name_of(seeds.scalar_type()));
  MOBIZO_CHECK(coeffs.scalar_type() == ScalarType::Float, op, "coeffs must be float32, got ", name_of(coeffs.scalar_type()));
  MOBIZO_CHECK(coeffs.dim() == 1 && coeffs.numel() == seeds.numel(), op, "coeffs must have the shape of seeds, ",
               shape_of(seeds), ", got ", shape_of(coeffs));
  return {as_contiguous(seeds), as_contiguous(coeffs)};
}

void check_base(const Tensor& base, const Tensor& x, const char* op, const char* argument) {
  check_cpu(base, op, argument);
  MOBIZO_CHECK(base.scalar_type() == x.scalar_type(), op, argument, " must have the dtype of x (", name_of(x.scalar_type()),
               "), got ", name_of(base.scalar_type()));
  bool same = base.dim() == x.dim();
  for (int64_t d = 0; same && d + 1 < x.dim(); ++d) same = base.size(d) == x.size(d);
  MOBIZO_CHECK(same, op, argument, " must have the leading sizes of x, ", shape_of(x), ", got shape ", shape_of(base));
}

ContiguousUpdate::ContiguousUpdate(const Tensor& target)
    : target_(target), work_(as_contiguous(target)), copied_(!target.is_contiguous()) {}

void ContiguousUpdate::finish() {
  if (copied_) torch::stable::copy_(target_, work_);
}

Tensor as_contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

std::optional<int64_t> row_stride(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  if (t.size(last) > 1 && t.stride(last) != 1) return std::nullopt;
  int64_t stride = t.size(last), rows = 1;
  bool first = true;
  for (int64_t d = last - 1; d >= 0; --d) {
    if (t.size(d) == 1) continue;
    if (first) {
      stride = t.stride(d);
      first = false;
    } else if (t.stride(d) != stride * rows) {
      return std::nullopt;
    }
    rows *= t.size(d);
  }
  return stride;
}

}  // namespace mobizo
