#include "inplace.h"

#include <algorithm>
#include <array>
#include <utility>

namespace mobizo {
namespace {

// (stride, size) of the dimensions that move, in bytes from element to element, smallest first.
std::vector<std::pair<int64_t, int64_t>> extents_of(const Tensor& t) {
  const auto bytes = static_cast<int64_t>(t.element_size());
  std::vector<std::pair<int64_t, int64_t>> extents;
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) > 1) extents.emplace_back(t.stride(d) * bytes, t.size(d));
  std::sort(extents.begin(), extents.end());
  return extents;
}

// Where the elements of a tensor lie from its first on, in memory taken modulo `period`: that many bytes. Nothing if they do
// not keep to one place of each period.
std::optional<int64_t> reach_within(const std::vector<std::pair<int64_t, int64_t>>& extents, int64_t bytes, int64_t period) {
  int64_t reach = bytes;
  for (const auto& [stride, size] : extents)
    if (stride % period != 0) reach += stride * (size - 1);
  if (reach > period) return std::nullopt;
  return reach;
}

bool disjoint_within(const Tensor& a, const Tensor& b, int64_t offset, int64_t period) {
  const auto reach_a = reach_within(extents_of(a), static_cast<int64_t>(a.element_size()), period);
  const auto reach_b = reach_within(extents_of(b), static_cast<int64_t>(b.element_size()), period);
  const int64_t distance = (offset % period + period) % period;
  return reach_a && reach_b && distance >= *reach_a && period - distance >= *reach_b;
}

}  // namespace

int64_t bytes_spanned(const Tensor& t) {
  auto bytes = static_cast<int64_t>(t.element_size());
  if (t.is_contiguous()) return bytes * t.numel();
  for (const auto& [stride, size] : extents_of(t)) bytes += stride * (size - 1);
  return bytes;
}

void check_no_overlap(const Tensor& t, const char* op, const char* argument) {
  if (t.is_contiguous()) return;
  const auto bytes = static_cast<int64_t>(t.element_size());
  int64_t reach = 0;  // of all smaller strides together
  for (const auto& [stride, size] : extents_of(t)) {
    MOBIZO_CHECK(stride > reach, op, argument, " must not overlap itself in memory, got shape ", shape_of(t),
                 " with a stride of ", stride / bytes);
    reach += stride * (size - 1);
  }
}

bool may_overlap(const Tensor& a, const Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  const int64_t offset = static_cast<const char*>(b.const_data_ptr()) - static_cast<const char*>(a.const_data_ptr());
  if (offset >= bytes_spanned(a) || -offset >= bytes_spanned(b)) return false;
  for (const Tensor* t : {&a, &b})
    for (const auto& extent : extents_of(*t))
      if (extent.first > 0 && disjoint_within(a, b, offset, extent.first)) return false;
  return true;
}

bool same_elements(const Tensor& a, const Tensor& b) {
  if (a.const_data_ptr() != b.const_data_ptr() || a.scalar_type() != b.scalar_type() || a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != b.size(d) || (a.size(d) > 1 && a.stride(d) != b.stride(d))) return false;
  return true;
}

void check_apart(const Argument& written, const Argument& other, const char* op) {
  MOBIZO_CHECK(!may_overlap(written.tensor, other.tensor), op, written.name, " and ", other.name,
               " must not share memory, but they overlap");
}

void check_no_gradient(const Tensor& t, const char* op, const char* argument) {
  if (!aoti_torch_grad_mode_is_enabled()) return;
  // The stable ABI can't ask a tensor whether it requires a gradient, but a view of it is a leaf if and only if it does not.
  std::array<StableIValue, 1> stack{torch::stable::detail::from(t)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::alias", "", stack.data(), TORCH_ABI_VERSION));
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::is_leaf", "", stack.data(), TORCH_ABI_VERSION));
  MOBIZO_CHECK(torch::stable::detail::to<bool>(stack[0]), op, argument,
               " requires a gradient, which a change in place would lose; call this under torch.no_grad()");
}

void announce_change(const Tensor& t, const char* op, const char* argument) {
  Tensor self = t;
  try {
    torch::stable::copy_(self, t);  // of a tensor onto itself: moves nothing, but counts as a change
  } catch (const std::exception&) {
    fail(op, argument, " may not be changed in place: a tensor made in inference mode can only be changed in inference mode");
  }
}

}  // namespace mobizo
