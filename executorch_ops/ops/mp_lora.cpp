#include <memory>
#include <new>

#include "library.h"

namespace mobizo::executorch_ops {
namespace {

constexpr const char* kOp = "mp_lora";

using executorch::runtime::toString;

int as_int(int64_t n) { return static_cast<int>(n); }  // for the format strings of ExecuTorch's log

// Shapes and types; fills in the sizes of args.
bool check_shapes(const Tensor& base, const Tensor& x, const Tensor& lora_a, const Tensor& lora_b, const Tensor& seeds,
                  MpLoraArgs* args) {
  if (!check_storage(base, kOp, "base") || !check_storage(x, kOp, "x") || !check_storage(lora_a, kOp, "lora_a") ||
      !check_storage(lora_b, kOp, "lora_b"))
    return false;
  ET_CHECK_OR_RETURN_FALSE(x.dim() >= 1 && base.dim() == x.dim(),
                           "mobizo::mp_lora: base must have the dimensions of x, one at least (%d), got %d", as_int(x.dim()),
                           as_int(base.dim()));
  ET_CHECK_OR_RETURN_FALSE(base.scalar_type() == x.scalar_type(), "mobizo::mp_lora: base must have the dtype of x (%s), got %s",
                           toString(x.scalar_type()), toString(base.scalar_type()));
  args->rows = 1;
  for (ssize_t d = 0; d + 1 < x.dim(); ++d) {
    ET_CHECK_OR_RETURN_FALSE(base.size(d) == x.size(d), "mobizo::mp_lora: base must have the leading sizes of x, got %d for %d",
                             as_int(base.size(d)), as_int(x.size(d)));
    args->rows *= x.size(d);
  }
  args->in_features = x.size(x.dim() - 1);
  args->out_features = base.size(base.dim() - 1);
  ET_CHECK_OR_RETURN_FALSE(
      lora_a.dim() == 2 && lora_a.size(1) == args->in_features && lora_a.scalar_type() == ScalarType::Float,
      "mobizo::mp_lora: lora_a must be float32 of shape (rank, %d), got %s of shape (%d, %d)", as_int(args->in_features),
      toString(lora_a.scalar_type()), as_int(lora_a.dim() > 0 ? lora_a.size(0) : 0),
      as_int(lora_a.dim() > 1 ? lora_a.size(1) : 0));
  args->rank = lora_a.size(0);
  ET_CHECK_OR_RETURN_FALSE(args->rank >= 1 && args->rank <= kMaxRank, "mobizo::mp_lora: rank must be from 1 to %d, got %d",
                           as_int(kMaxRank), as_int(args->rank));
  ET_CHECK_OR_RETURN_FALSE(lora_b.dim() == 2 && lora_b.size(0) == args->out_features && lora_b.size(1) == args->rank,
                           "mobizo::mp_lora: lora_b must have shape (%d, %d)", as_int(args->out_features), as_int(args->rank));
  args->groups = seeds.numel();
  ET_CHECK_OR_RETURN_FALSE(args->groups >= 1, "mobizo::mp_lora: seeds must name at least one group");
  ET_CHECK_OR_RETURN_FALSE(args->rows % args->groups == 0,
                           "mobizo::mp_lora: rows of x (%d) must be divisible by the number of groups (%d)", as_int(args->rows),
                           as_int(args->groups));
  return storage_dtype(x, kOp, "x", &args->dtype) && storage_dtype(lora_b, kOp, "lora_b", &args->lora_b_dtype);
}

// Whether out shares memory with nothing that is read. It may be base or x itself: every row is read before it is written.
bool check_out_apart(const Tensor& out, const Tensor& base, const Tensor& x, const Tensor& lora_a, const Tensor& lora_b,
                     const Tensor& seeds, const Tensor& coeffs) {
  return (same_elements(out, base) || check_apart(out, "out", base, "base", kOp)) &&
         (same_elements(out, x) || check_apart(out, "out", x, "x", kOp)) && check_apart(out, "out", lora_a, "lora_a", kOp) &&
         check_apart(out, "out", lora_b, "lora_b", kOp) && check_apart(out, "out", seeds, "seeds", kOp) &&
         check_apart(out, "out", coeffs, "coeffs", kOp);
}

Tensor& mp_lora_out(KernelRuntimeContext& context, const Tensor& base, const Tensor& x, const Tensor& lora_a,
                    const Tensor& lora_b, const Tensor& seeds, const Tensor& coeffs, double scaling, int64_t stream,
                    std::string_view distribution, Tensor& out) {
  MpLoraArgs args{};
  ET_KERNEL_CHECK(context, check_directions(seeds, coeffs, kOp), InvalidArgument, out);
  ET_KERNEL_CHECK(context, parse_distribution(distribution, kOp, &args.distribution), InvalidArgument, out);
  ET_KERNEL_CHECK(context, check_shapes(base, x, lora_a, lora_b, seeds, &args), InvalidArgument, out);
  ET_KERNEL_CHECK_MSG(context, out.scalar_type() == base.scalar_type(), InvalidArgument, out,
                      "mobizo::mp_lora: out must have the dtype of base (%s), got %s", toString(base.scalar_type()),
                      toString(out.scalar_type()));
  ET_KERNEL_CHECK(context, check_storage(out, kOp, "out"), InvalidArgument, out);
  const Kernels* k = kernels();
  ET_KERNEL_CHECK(context, k != nullptr, NotSupported, out);
  const std::unique_ptr<float[]> scratch(new (std::nothrow) float[mp_lora_scratch(args)]);
  ET_KERNEL_CHECK_MSG(context, scratch != nullptr, MemoryAllocationFailed, out, "mobizo::mp_lora: out of memory");
  ET_KERNEL_CHECK_MSG(context, executorch::runtime::resize_tensor(out, base.sizes()) == Error::Ok, InvalidArgument, out,
                      "mobizo::mp_lora: out must have the shape of base, or room for it");
  if (out.numel() == 0) return out;
  ET_KERNEL_CHECK(context, check_out_apart(out, base, x, lora_a, lora_b, seeds, coeffs), InvalidArgument, out);
  args.base = base.const_data_ptr();
  args.x = x.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.base_stride = args.out_stride = args.out_features;
  args.x_stride = args.in_features;
  args.lora_a = lora_a.const_data_ptr<float>();
  args.lora_b = lora_b.const_data_ptr();
  args.seeds = seeds.const_data_ptr<int64_t>();
  args.coeffs = coeffs.const_data_ptr<float>();
  args.scaling = static_cast<float>(scaling);
  args.stream = stream;
  args.scratch = scratch.get();
  run_mp_lora(*k, args, executorch::extension::get_thread_count(), ParallelFor{});
  return out;
}

}  // namespace
}  // namespace mobizo::executorch_ops

MOBIZO_EXECUTORCH_OP("mp_lora.out", mobizo::executorch_ops::mp_lora_out);
