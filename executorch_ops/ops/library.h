// How an op is registered with ExecuTorch.
#pragma once

#include "checks.h"

namespace mobizo::executorch_ops {

using executorch::runtime::EValue;

template <typename T>
bool holds(const EValue& value, const T*) {
  return value.tryTo<T>().ok();
}
template <typename T>
bool holds(const EValue& value, const std::optional<T>*) {
  return value.tryToOptional<T>().ok();
}

// The kernel of ExecuTorch that calls Function on the values of a program, once these are as many and of such types as it
// takes: the runtime ends the process where they are not.
template <typename Function, typename Type = typename Function::FuncType>
struct CheckedKernel;
template <typename Function, typename... Args>
struct CheckedKernel<Function, Tensor&(KernelRuntimeContext&, Args...)> {
  static void call(KernelRuntimeContext& context, executorch::runtime::Span<EValue*> values) {
    size_t count = 0;
    const bool fit =
        values.size() >= sizeof...(Args) && (holds(*values[count++], static_cast<const std::decay_t<Args>*>(nullptr)) && ...);
    ET_KERNEL_CHECK_MSG(context, fit, InvalidArgument, , "%s: argument %d is missing or of another type", Function::func_name_,
                        static_cast<int>(count));
    executorch::extension::WrapUnboxedIntoFunctor<Function>::call(context, values);
  }
};

}  // namespace mobizo::executorch_ops

// Once in a file: `function` is the kernel of the op called `name`, with its overload.
#define MOBIZO_EXECUTORCH_OP(name, function)                                                          \
  static constexpr const char op_name[] = "mobizo::" name;                                            \
  static const auto op_registered = executorch::runtime::register_kernel(executorch::runtime::Kernel( \
      op_name, mobizo::executorch_ops::CheckedKernel<EXECUTORCH_FN_TYPE(function, op_name)>::call))
