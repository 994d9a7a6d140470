#include <memory>

#include "inplace.h"

namespace mobizo {
namespace {

void mp_outer_(Tensor base, const Tensor& x, const Tensor& seeds, const Tensor& coeffs, int64_t stream, bool transposed) {
  constexpr const char* op = "mp_outer_";
  check_cpu(x, op, "x");
  const DType dtype = dtype_of(x, op, "x");
  MOBIZO_CHECK(x.dim() >= 1, op, "x must have at least one dimension, got shape ", shape_of(x));
  check_base(base, x, op, "base");
  const Directions directions = directions_of(seeds, coeffs, op);
  const int64_t groups = directions.count();
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) rows *= x.size(d);
  MOBIZO_CHECK(groups >= 1, op, "seeds must name at least one group, got shape ", shape_of(seeds));
  MOBIZO_CHECK(rows % groups == 0, op, "rows of x (", rows, ") must be divisible by the number of groups (", groups, ")");
  check_no_overlap(base, op, "base");
  for (const Argument& read : {Argument{x, "x"}, {seeds, "seeds"}, {coeffs, "coeffs"}}) check_apart({base, "base"}, read, op);
  for (const Argument& one : {Argument{base, "base"}, {x, "x"}, {coeffs, "coeffs"}})
    check_no_gradient(one.tensor, op, one.name);
  announce_change(base, op, "base");

  const int64_t out_features = base.size(base.dim() - 1), in_features = x.size(x.dim() - 1);
  if (rows == 0 || out_features == 0) return;
  const bool in_place = row_stride(base).has_value();
  const Tensor out = in_place ? base : torch::stable::contiguous(base);
  const std::optional<int64_t> x_stride = row_stride(x);
  const Tensor x_rows = x_stride ? x : as_contiguous(x);
  MpOuterArgs args{};
  args.x = x_rows.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.dtype = dtype;
  args.x_stride = x_stride.value_or(in_features);
  args.out_stride = *row_stride(out);
  args.seeds = directions.seed_data();
  args.coeffs = directions.coeff_data();
  args.rows = rows;
  args.in_features = in_features;
  args.out_features = out_features;
  args.groups = groups;
  args.stream = stream;
  args.first_out = transposed ? in_features : 0;
  args.first_in = transposed ? 0 : out_features;
  const std::unique_ptr<uint8_t[]> signs(new uint8_t[sign_bytes(out_features + in_features) * groups]);
  run_mp_outer(kernels(), args, signs.get(), ParallelFor{});
  if (!in_place) torch::stable::copy_(base, out);
}

}  // namespace
}  // namespace mobizo

MOBIZO_LIBRARY_IMPL(CPU, m) { m.impl("mp_outer_", TORCH_BOX(&mobizo::mp_outer_)); }
