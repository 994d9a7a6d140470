// What the ops that update a parameter share: their checks, and the run that leaves the norm of the change.
#pragma once

#include <initializer_list>
#include <memory>
#include <new>

#include "checks.h"

namespace mobizo::executorch_ops {

// *args is all that a kernel must know to update `param`, but for squared_change.
bool update_args(Tensor& param, const Tensor& seeds, const Tensor& coeffs, int64_t stream, double decay,
                 std::string_view distribution, const char* op, PerturbArgs* args);

// An optimizer's state of one parameter: contiguous float32 of the same shape. *data is where it lies.
bool check_state(Tensor& state, const Tensor& param, const char* op, const char* argument, float** data);

// A tensor and its name in messages.
struct Argument {
  const Tensor& tensor;
  const char* name;
};

// Whether no tensor that is written shares memory with another one, written or read.
bool check_all_apart(std::initializer_list<Argument> written, std::initializer_list<Argument> read, const char* op);

// A learning rate or a norm: float32 of shape (1,).
bool check_one_float(const Tensor& t, const char* op, const char* argument);

// The kernel over the parameter, on all threads; *norm is the L2 norm of the change.
template <typename Args>
Error run_with_norm(void (*Kernels::*kernel)(const Args&, int64_t, int64_t), Args args, float* norm) {
  const Kernels* k = kernels();
  if (k == nullptr) return Error::NotSupported;
  const std::unique_ptr<double[]> squared_change(new (std::nothrow) double[tasks_of(args)]);
  if (squared_change == nullptr) return Error::MemoryAllocationFailed;
  args.squared_change = squared_change.get();
  if (!run_update(*k, k->*kernel, args, ParallelFor{})) return Error::MemoryAllocationFailed;
  *norm = norm_of_change(args);
  return Error::Ok;
}

}  // namespace mobizo::executorch_ops
