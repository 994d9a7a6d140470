// The memory that the methods of a program plan for what they compute and for the buffers that they change.
#pragma once

#include <executorch/extension/module/module.h>
#include <executorch/runtime/core/hierarchical_allocator.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

namespace mobizo::trainer {

// What each arena has to hold for any of the methods. Throws Error, naming the file, if one plans more than the machine has:
// the runtime gets the memory before it looks at anything else.
std::vector<size_t> arena_sizes(executorch::extension::Module& module, const std::string& path);

// One arena for each number that a plan gives, the same for all methods. ExecuTorch's Module would write zeros over all of it,
// though steps of short rows and answers need little: here the system gives a page when it is first written to.
class Arenas {
 public:
  // Throws std::bad_alloc.
  explicit Arenas(const std::vector<size_t>& sizes);
  Arenas(const Arenas&) = delete;
  Arenas& operator=(const Arenas&) = delete;

  executorch::runtime::HierarchicalAllocator* allocator() { return &allocator_; }

 private:
  using Span = executorch::runtime::Span<uint8_t>;
  struct Free {
    void operator()(uint8_t* memory) const { std::free(memory); }
  };

  std::vector<std::unique_ptr<uint8_t, Free>> memory_;
  std::vector<Span> spans_;
  executorch::runtime::HierarchicalAllocator allocator_;
};

}  // namespace mobizo::trainer
