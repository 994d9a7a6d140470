#include "arenas.h"

#include <unistd.h>

#include <algorithm>
#include <new>

#include "../files/errors.h"

namespace mobizo::trainer {

std::vector<size_t> arena_sizes(executorch::extension::Module& module, const std::string& path) {
  std::vector<size_t> sizes;
  const auto names = module.method_names();
  if (!names.ok()) return sizes;
  const double machine = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
  for (const std::string& name : *names) {
    const auto meta = module.method_meta(name);
    double planned = 0;
    for (size_t i = 0; meta.ok() && i < meta->num_memory_planned_buffers(); ++i) {
      const auto bytes = meta->memory_planned_buffer_size(i);
      if (!bytes.ok() || *bytes < 0) fail(path, ": method ", name, " plans memory of no size");
      planned += static_cast<double>(*bytes);
      sizes.resize(std::max(sizes.size(), i + 1));
      sizes[i] = std::max(sizes[i], static_cast<size_t>(*bytes));
    }
    if (planned > machine)
      fail(path, ": method ", name, " needs ", planned / 1e9, " GB of memory, but this machine has ", machine / 1e9);
  }
  return sizes;
}

Arenas::Arenas(const std::vector<size_t>& sizes) : spans_(sizes.size()), allocator_({spans_.data(), spans_.size()}) {
  memory_.reserve(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) {
    memory_.emplace_back(static_cast<uint8_t*>(std::calloc(sizes[i] > 0 ? sizes[i] : 1, 1)));
    if (memory_.back() == nullptr) throw std::bad_alloc();
    spans_[i] = Span(memory_.back().get(), sizes[i]);
  }
}

}  // namespace mobizo::trainer
