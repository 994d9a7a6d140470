// What the ops that update parameters share: checked kernel arguments, and the run over one parameter or over all of a model.
#pragma once

#include <algorithm>
#include <utility>

#include "inplace.h"

namespace mobizo {

// The tensors that an op writes. Each is added while the arguments are checked, then begin() gives contiguous stand-ins where
// they are needed, and finish() writes them back.
class Updates {
 public:
  Updates(const Tensor& seeds, const Tensor& coeffs) {
    read(seeds, "seeds");
    read(coeffs, "coeffs");
  }
  void add(const Tensor& t, std::string name) { written_.push_back({t, std::move(name)}); }
  // A tensor that the op reads.
  void read(const Tensor& t, std::string name) { read_.push_back({t, std::move(name)}); }
  // Refuses what shares memory with a tensor that is written, and what autograd would need a gradient of. Nothing may fail
  // after it.
  void begin(const char* op);
  // Of the i-th tensor added.
  void* data(size_t i) const { return updates_[i].data(); }
  float* floats(size_t i) const { return static_cast<float*>(data(i)); }
  void finish();

 private:
  struct Named {
    Tensor tensor;
    std::string name;
  };
  void check_apart(const char* op) const;
  std::vector<Named> written_, read_;
  std::vector<ContiguousUpdate> updates_;
};

// Everything but the pointer to `param`, which is added to `updates`.
PerturbArgs perturb_args(Updates& updates, const Tensor& param, const Directions& directions, int64_t stream, double decay,
                         const std::string& distribution, const char* op, const std::string& argument);

// An optimizer's state of one parameter, float32 of the same shape, is added to `updates`.
void add_state(Updates& updates, const Tensor& state, const Tensor& param, const char* op, const std::string& argument);

// lr, float32 [1], is read.
float learning_rate(Updates& updates, const Tensor& lr, const char* op);

// The output of the ops that return the norm of a change, float32 [1], is added to `updates`.
void add_norm(Updates& updates, const Tensor& out, const char* op);
Tensor empty_norm(const Tensor& param);

// "params[3]": an element of a list, in messages.
std::string element_of(const char* list, size_t index);

// One entry in the list `argument` for each of `params` parameters.
template <typename T>
void check_length(const std::vector<T>& list, size_t params, const char* op, const char* argument) {
  MOBIZO_CHECK(list.size() == params, op, argument, " must have one entry per parameter (", params, "), got ", list.size());
}

// The kernel over one parameter.
template <typename Args>
void run_one(void (*kernel)(const Args&, int64_t, int64_t), const Args& args, Updates& updates) {
  if (!run_update(kernels(), kernel, args, ParallelFor{})) throw std::bad_alloc();
  updates.finish();
}

// The same, and the norm of the change in out.
template <typename Args>
void run_with_norm(void (*kernel)(const Args&, int64_t, int64_t), Args args, Updates& updates, Tensor& out) {
  std::vector<double> squared_change(tasks_of(args));
  args.squared_change = squared_change.data();
  run_one(kernel, args, updates);
  *static_cast<float*>(out.mutable_data_ptr()) = norm_of_change(args);
}

// The kernel over all parameters. Their tasks stand in one row, so that many small parameters cost one parallel region.
template <typename Args>
void run_foreach(void (*kernel)(const Args&, int64_t, int64_t), std::vector<Args> args, Updates& updates) {
  std::vector<int64_t> first_task{0};
  std::vector<std::unique_ptr<uint8_t[]>> signs(args.size());
  bool outer = false;
  for (size_t i = 0; i < args.size(); ++i) {
    first_task.push_back(first_task.back() + tasks_of(args[i]));
    if (!allocate_signs(args[i], args[i].count, signs[i])) throw std::bad_alloc();
    outer = outer || signs[i] != nullptr;
  }
  if (outer) {
    const Kernels& k = kernels();
    ParallelFor{}(0, static_cast<int64_t>(args.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) draw_signs(k, args[i], args[i].seeds, args[i].count, signs[i], 0, args[i].count);
    });
  }
  ParallelFor{}(0, first_task.back(), kNoiseGrain, [&](int64_t begin, int64_t end) {
    size_t i = std::upper_bound(first_task.begin(), first_task.end(), begin) - first_task.begin() - 1;
    for (; begin < end; ++i) {
      const int64_t stop = std::min(end, first_task[i + 1]);
      kernel(args[i], begin - first_task[i], stop - first_task[i]);
      begin = stop;
    }
  });
  updates.finish();
}

}  // namespace mobizo
