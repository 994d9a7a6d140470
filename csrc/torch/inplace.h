// What torch and its users expect of an op that changes its arguments: no memory under two names, no gradient lost, every
// change made known.
#pragma once

#include "checks.h"

namespace mobizo {

// An argument that an op changes or reads, and its name in messages.
struct Argument {
  Tensor tensor;
  const char* name;
};

// Refuses a tensor that is to be written but may hold one memory location twice, as an expanded tensor does.
void check_no_overlap(const Tensor& t, const char* op, const char* argument);

// From the first byte of a tensor to behind its last.
int64_t bytes_spanned(const Tensor& t);

// Whether two tensors, neither of which overlaps itself, may share memory. Those that interleave as the columns or heads of a
// fused weight do don't; some that interleave in odder ways are taken to.
bool may_overlap(const Tensor& a, const Tensor& b);

// Whether two tensors are the same elements in the same order.
bool same_elements(const Tensor& a, const Tensor& b);

// Refuses arguments that share memory where one of them is written.
void check_apart(const Argument& written, const Argument& other, const char* op);

// Refuses a tensor whose gradient the op would leave out or make wrong: it requires one, and autograd records.
void check_no_gradient(const Tensor& t, const char* op, const char* argument);

// To be called before a tensor is changed: autograd then knows that what it saved of the tensor is gone. Throws, as torch does,
// for a tensor of inference mode outside of it.
void announce_change(const Tensor& t, const char* op, const char* argument);

}  // namespace mobizo
