// What every ExecuTorch binding needs: checks that log op, argument, expectation and finding, and typed views of tensors.
//
// The check functions log and return false; a kernel then gives up through ET_KERNEL_CHECK before it has written anything.
#pragma once

#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>
#include <executorch/runtime/kernel/kernel_includes.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include <string_view>

#include "../../csrc/kernels/run.h"

namespace mobizo::executorch_ops {

using executorch::aten::ArrayRef;
using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::KernelRuntimeContext;

// ExecuTorch's shared pool, as csrc/kernels/run.h takes threads.
struct ParallelFor {
  template <typename F>
  void operator()(int64_t begin, int64_t end, int64_t grain, const F& f) const {
    executorch::extension::parallel_for(begin, end, grain, f);
  }
};

// The selected kernels; null, with a log line, if MOBIZO_CPU asks for what this machine lacks.
const Kernels* kernels();

// *dtype is what t holds; false unless it is float32, bfloat16 or float16.
bool storage_dtype(const Tensor& t, const char* op, const char* argument, DType* dtype);

// Rows of unit stride, one after another, in memory that is there: what the memory planner gives a program unless it was asked
// for another order, and what a damaged program need not have.
bool check_storage(const Tensor& t, const char* op, const char* argument);

// seeds [n] int64 and coeffs [n] float32.
bool check_directions(const Tensor& seeds, const Tensor& coeffs, const char* op);

// Whether two contiguous tensors share no memory, as they must not where one of them is written.
bool check_apart(const Tensor& written, const char* argument, const Tensor& other, const char* other_argument, const char* op);

// Whether two contiguous tensors are the same elements in the same order.
bool same_elements(const Tensor& a, const Tensor& b);

bool parse_distribution(std::string_view name, const char* op, Distribution* distribution);

}  // namespace mobizo::executorch_ops
