// What the trainer needs of ExecuTorch beside its Module: the thread pool, backend options and the log.
#pragma once

#include <executorch/runtime/backend/backend_options_map.h>
#include <executorch/runtime/backend/options.h>
#include <executorch/runtime/core/error.h>

#include <cstdint>
#include <string>

namespace mobizo::trainer {

// Prepares the runtime, once per process.
void initialize_runtime();

// Counts as a user of the process's thread pool while it lives. threads: 0 for the number the pool has. The pool cannot change
// under a loaded program, so another number than that of a living user is an Error.
class ThreadPoolUse {
 public:
  explicit ThreadPoolUse(int64_t threads);
  ~ThreadPoolUse();
  ThreadPoolUse(const ThreadPoolUse&) = delete;
  ThreadPoolUse& operator=(const ThreadPoolUse&) = delete;
};

// A program's use of XNNPACK's weight cache, in which its methods share packed weights. The cache is one of the process, and
// knows weights by their bytes alone: where two programs pack the same bytes in two ways, as int8 and int8-dynamic do, closing
// one frees what the other computes with. So the programs in it at any time are one and the same, `checksum` says which; the
// methods of another one pack weights of their own.
class WeightCacheUse {
 public:
  explicit WeightCacheUse(uint32_t checksum);
  ~WeightCacheUse();
  WeightCacheUse(const WeightCacheUse&) = delete;
  WeightCacheUse& operator=(const WeightCacheUse&) = delete;

  // What methods are to be loaded with.
  const executorch::runtime::LoadBackendOptionsMap* options() const { return &map_; }

 private:
  bool cached_;
  executorch::runtime::BackendOptions<1> xnnpack_;
  executorch::runtime::LoadBackendOptionsMap map_;
};

// Throws Error in the child of a fork whose parent had a program open: the pool's threads are not there, and waiting for them
// has no end. To be called before anything uses the pool.
void check_threads();

// While one lives, ExecuTorch's error messages are kept for explain() and none of its chatter is printed.
class LogCapture {
 public:
  LogCapture();
  ~LogCapture();
  LogCapture(const LogCapture&) = delete;
  LogCapture& operator=(const LogCapture&) = delete;

  // Throws Error unless `error` is Ok: `what`, the error's name, and the first message that was logged.
  void check(executorch::runtime::Error error, const std::string& what) const;
};

}  // namespace mobizo::trainer
