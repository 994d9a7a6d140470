#include <array>
#include <memory>

#include "inplace.h"

namespace mobizo {
namespace {

// The arguments that mp_lora, mp_lora_ and mp_lora_linear share, checked against x and the sizes of the output.
struct Adapter {
  Tensor lora_a, lora_b;
  Directions directions;
  int64_t rows, in_features, out_features;
  float scaling;
  int64_t stream;
  Distribution distribution;
};

Adapter check_adapter(const Tensor& x, int64_t out_features, const Tensor& lora_a, const Tensor& lora_b, const Tensor& seeds,
                      const Tensor& coeffs, double scaling, int64_t stream, const std::string& distribution, const char* op) {
  check_cpu(x, op, "x");
  check_cpu(lora_a, op, "lora_a");
  check_cpu(lora_b, op, "lora_b");
  dtype_of(x, op, "x");
  dtype_of(lora_a, op, "lora_a");
  dtype_of(lora_b, op, "lora_b");
  MOBIZO_CHECK(x.dim() >= 1, op, "x must have at least one dimension, got shape ", shape_of(x));
  const int64_t in_features = x.size(x.dim() - 1);
  MOBIZO_CHECK(lora_a.dim() == 2 && lora_a.size(1) == in_features, op, "lora_a must have shape (rank, ", in_features, "), got ",
               shape_of(lora_a));
  const int64_t rank = lora_a.size(0);
  MOBIZO_CHECK(rank >= 1 && rank <= kMaxRank, op, "rank must be from 1 to ", kMaxRank, ", got ", rank);
  MOBIZO_CHECK(lora_b.dim() == 2 && lora_b.size(0) == out_features && lora_b.size(1) == rank, op, "lora_b must have shape (",
               out_features, ", ", rank, "), got ", shape_of(lora_b));
  Directions directions = directions_of(seeds, coeffs, op);
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) rows *= x.size(d);
  const int64_t groups = directions.count();
  MOBIZO_CHECK(groups >= 1, op, "seeds must name at least one group, got shape ", shape_of(seeds));
  MOBIZO_CHECK(rows % groups == 0, op, "rows of x (", rows, ") must be divisible by the number of groups (", groups, ")");
  return {as_contiguous(lora_a.scalar_type() == ScalarType::Float ? lora_a : torch::stable::to(lora_a, ScalarType::Float)),
          as_contiguous(lora_b),
          std::move(directions),
          rows,
          in_features,
          out_features,
          static_cast<float>(scaling),
          stream,
          distribution_of(distribution, op)};
}

// out = base + adapter(x). base and x may have any strides; out has rows of unit stride, and may be base.
void run(const Adapter& adapter, const Tensor& base, const Tensor& x, const Tensor& out) {
  if (adapter.rows == 0 || adapter.out_features == 0) return;
  const std::optional<int64_t> base_stride = row_stride(base), x_stride = row_stride(x);
  const Tensor base_rows = base_stride ? base : as_contiguous(base);
  const Tensor x_rows = x_stride ? x : as_contiguous(x);
  const int64_t rank = adapter.lora_a.size(0), groups = adapter.directions.count();
  MpLoraArgs args{};
  args.base = base_rows.const_data_ptr();
  args.x = x_rows.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.dtype = dtype_of(x, "mp_lora", "x");
  args.base_stride = base_stride.value_or(adapter.out_features);
  args.x_stride = x_stride.value_or(adapter.in_features);
  args.out_stride = *row_stride(out);
  args.lora_a = static_cast<const float*>(adapter.lora_a.const_data_ptr());
  args.lora_b = adapter.lora_b.const_data_ptr();
  args.lora_b_dtype = dtype_of(adapter.lora_b, "mp_lora", "lora_b");
  args.seeds = adapter.directions.seed_data();
  args.coeffs = adapter.directions.coeff_data();
  args.rows = adapter.rows;
  args.in_features = adapter.in_features;
  args.out_features = adapter.out_features;
  args.rank = rank;
  args.groups = groups;
  args.scaling = adapter.scaling;
  args.stream = adapter.stream;
  args.distribution = adapter.distribution;
  const std::unique_ptr<float[]> scratch(new float[mp_lora_scratch(args)]);
  args.scratch = scratch.get();
  run_mp_lora(kernels(), args, thread_count(), ParallelFor{});
}

// The same for an output of any strides.
void run_into(const Adapter& adapter, const Tensor& base, const Tensor& x, Tensor out) {
  if (row_stride(out)) return run(adapter, base, x, out);
  const Tensor rows = torch::stable::contiguous(torch::stable::empty_like(out));
  run(adapter, base, x, rows);
  torch::stable::copy_(out, rows);
}

// Of the ops that write an existing tensor, after all other checks. What they write may be what they read, element by element:
// every row of x is read before the row of its results is written.
void begin_writing(const Argument& out, const Argument& base, const Tensor& x, const Tensor& lora_a, const Tensor& lora_b,
                   const Tensor& seeds, const Tensor& coeffs, const char* op) {
  check_no_overlap(out.tensor, op, out.name);
  for (const Argument& read : {base, Argument{x, "x"}})
    if (!same_elements(out.tensor, read.tensor)) check_apart(out, read, op);
  for (const Argument& read : {Argument{lora_a, "lora_a"}, {lora_b, "lora_b"}, {seeds, "seeds"}, {coeffs, "coeffs"}})
    check_apart(out, read, op);
  for (const Argument& one : {out, base, Argument{x, "x"}, {lora_a, "lora_a"}, {lora_b, "lora_b"}, {coeffs, "coeffs"}})
    check_no_gradient(one.tensor, op, one.name);
  announce_change(out.tensor, op, out.name);
}

int64_t last_size(const Tensor& base, const char* op) {
  MOBIZO_CHECK(base.dim() >= 1, op, "base must have at least one dimension, got shape ", shape_of(base));
  return base.size(base.dim() - 1);
}

Tensor mp_lora_(Tensor base, const Tensor& x, const Tensor& lora_a, const Tensor& lora_b, const Tensor& seeds,
                const Tensor& coeffs, double scaling, int64_t stream, std::string distribution) {
  constexpr const char* op = "mp_lora_";
  const Adapter adapter =
      check_adapter(x, last_size(base, op), lora_a, lora_b, seeds, coeffs, scaling, stream, distribution, op);
  check_base(base, x, op, "base");
  begin_writing({base, "base"}, {base, "base"}, x, lora_a, lora_b, seeds, coeffs, op);
  run_into(adapter, base, x, base);
  return base;
}

Tensor mp_lora_out(const Tensor& base, const Tensor& x, const Tensor& lora_a, const Tensor& lora_b, const Tensor& seeds,
                   const Tensor& coeffs, double scaling, int64_t stream, std::string distribution, Tensor out) {
  constexpr const char* op = "mp_lora";
  const Adapter adapter =
      check_adapter(x, last_size(base, op), lora_a, lora_b, seeds, coeffs, scaling, stream, distribution, op);
  check_base(base, x, op, "base");
  check_base(out, x, op, "out");
  MOBIZO_CHECK(out.size(out.dim() - 1) == adapter.out_features, op, "out must have the shape of base, ", shape_of(base),
               ", got ", shape_of(out));
  begin_writing({out, "out"}, {base, "base"}, x, lora_a, lora_b, seeds, coeffs, op);
  run_into(adapter, base, x, out);
  return out;
}

Tensor mp_lora(const Tensor& base, const Tensor& x, const Tensor& lora_a, const Tensor& lora_b, const Tensor& seeds,
               const Tensor& coeffs, double scaling, int64_t stream, std::string distribution) {
  constexpr const char* op = "mp_lora";
  const Adapter adapter =
      check_adapter(x, last_size(base, op), lora_a, lora_b, seeds, coeffs, scaling, stream, distribution, op);
  check_base(base, x, op, "base");
  Tensor out = torch::stable::new_empty(base, base.sizes());
  run(adapter, base, x, out);
  return out;
}

Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(x), torch::stable::detail::from(weight),
                                    torch::stable::detail::from(bias)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor mp_lora_linear(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, const Tensor& lora_a,
                      const Tensor& lora_b, const Tensor& seeds, const Tensor& coeffs, double scaling, int64_t stream,
                      std::string distribution) {
  constexpr const char* op = "mp_lora_linear";
  check_cpu(weight, op, "weight");
  MOBIZO_CHECK(weight.dim() == 2 && x.dim() >= 1 && weight.size(1) == x.size(x.dim() - 1), op,
               "weight must have shape (out_features, in_features of x), got ", shape_of(weight), " for x of shape ",
               shape_of(x));
  MOBIZO_CHECK(weight.scalar_type() == x.scalar_type(), op, "weight must have the dtype of x (", name_of(x.scalar_type()),
               "), got ", name_of(weight.scalar_type()));
  if (bias) {
    check_cpu(*bias, op, "bias");
    MOBIZO_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0), op, "bias must have shape (", weight.size(0), ",), got ",
                 shape_of(*bias));
    MOBIZO_CHECK(bias->scalar_type() == x.scalar_type(), op, "bias must have the dtype of x (", name_of(x.scalar_type()),
                 "), got ", name_of(bias->scalar_type()));
  }
  const Adapter adapter = check_adapter(x, weight.size(0), lora_a, lora_b, seeds, coeffs, scaling, stream, distribution, op);
  const Tensor out = linear(x, weight, bias);
  // Under autocast it may be of another type, where its rule for this op (mobizo_kernels/ops) is not loaded.
  MOBIZO_CHECK(out.scalar_type() == x.scalar_type(), op, "x must have the dtype that linear gives it here (",
               name_of(out.scalar_type()), "), got ", name_of(x.scalar_type()), "; is autocast on?");
  run_into(adapter, out, x, out);
  return out;
}

}  // namespace
}  // namespace mobizo

MOBIZO_LIBRARY_IMPL(CPU, m) {
  m.impl("mp_lora", TORCH_BOX(&mobizo::mp_lora));
  m.impl("mp_lora.out", TORCH_BOX(&mobizo::mp_lora_out));
  m.impl("mp_lora_", TORCH_BOX(&mobizo::mp_lora_));
  m.impl("mp_lora_linear", TORCH_BOX(&mobizo::mp_lora_linear));
}
