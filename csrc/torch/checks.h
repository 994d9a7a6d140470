// What every torch binding needs: errors that name op, argument, expectation and finding; typed views of tensors; threads.
//
// Only LibTorch's stable ABI is used (torch/csrc/stable, torch/headeronly), so one build serves later torch releases.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../kernels/run.h"
#include "registration.h"

namespace mobizo {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << "mobizo::" << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// Throws "mobizo::<op>: <parts...>" unless `ok`. Called before anything is written. A macro, so that the parts of a message
// that is not needed cost nothing.
#define MOBIZO_CHECK(ok, op, ...)     \
  do {                                \
    if (!(ok)) fail(op, __VA_ARGS__); \
  } while (false)

std::string shape_of(const Tensor& t);  // "(2, 3)"
std::string name_of(ScalarType type);   // "float32"

DType dtype_of(const Tensor& t, const char* op, const char* argument);
DType dtype_of(ScalarType type, const char* op, const char* argument);
Distribution distribution_of(const std::string& name, const char* op);
void check_cpu(const Tensor& t, const char* op, const char* argument);

// The selected kernels; throws if MOBIZO_CPU asks for what this machine lacks.
const Kernels& kernels();

// Whether this process is the child of a fork: torch's pool waits there forever for the threads that the parent has.
bool in_forked_child();

// torch's threads, as csrc/kernels/run.h takes them; in a forked child the calling thread alone.
struct ParallelFor {
  template <typename F>
  void operator()(int64_t begin, int64_t end, int64_t grain, const F& f) const {
    if (!in_forked_child())
      torch::stable::parallel_for(begin, end, grain, f);
    else if (begin < end)
      f(begin, end);
  }
};
int64_t thread_count();

// seeds [n] int64 and coeffs [n] float32, checked and contiguous.
struct Directions {
  Tensor seeds, coeffs;
  int64_t count() const { return seeds.numel(); }
  const int64_t* seed_data() const { return static_cast<const int64_t*>(seeds.const_data_ptr()); }
  const float* coeff_data() const { return static_cast<const float*>(coeffs.const_data_ptr()); }
};
Directions directions_of(const Tensor& seeds, const Tensor& coeffs, const char* op);

// Refuses an output, or a base of it, that has not the dtype and the leading sizes of x.
void check_base(const Tensor& base, const Tensor& x, const char* op, const char* argument);

// A contiguous stand-in for a tensor that a kernel updates: the tensor itself where it is contiguous, else a copy that finish()
// writes back.
class ContiguousUpdate {
 public:
  explicit ContiguousUpdate(const Tensor& target);
  void* data() const { return work_.mutable_data_ptr(); }
  void finish();

 private:
  Tensor target_, work_;
  bool copied_;
};

// The tensor itself where it is contiguous, else a contiguous copy.
Tensor as_contiguous(const Tensor& t);

// Elements between consecutive rows if the leading dimensions collapse into one and the last has unit stride; else nothing.
std::optional<int64_t> row_stride(const Tensor& t);

}  // namespace mobizo
