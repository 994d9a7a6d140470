#include "mapped_loader.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "errors.h"
#include "file.h"

namespace mobizo::trainer {
namespace {

namespace runtime = executorch::runtime;

// Pages at the ends may hold something else as well, which is then read from the file again.
void leave_memory(void*, void* data, size_t size) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(data) / page * page;
  ::madvise(reinterpret_cast<void*>(begin), reinterpret_cast<uintptr_t>(data) + size - begin, MADV_DONTNEED);
}

}  // namespace

MappedLoader::MappedLoader(const std::string& path) {
  const File file(path, O_RDONLY);
  size_ = static_cast<size_t>(file.size());
  if (size_ == 0) fail(path, ": not a program of ExecuTorch: the file is empty");
  data_ = file.map();
}

MappedLoader::~MappedLoader() { ::munmap(data_, size_); }

runtime::Result<runtime::FreeableBuffer> MappedLoader::load(size_t offset, size_t size, const SegmentInfo&) const {
  ET_CHECK_OR_RETURN_ERROR(holds(offset, size), InvalidProgram, "bytes %zu to %zu of a file of %zu", offset, offset + size,
                           size_);
  return runtime::FreeableBuffer(data_ + offset, size, leave_memory);
}

runtime::Error MappedLoader::load_into(size_t offset, size_t size, const SegmentInfo&, void* buffer) const {
  ET_CHECK_OR_RETURN_ERROR(holds(offset, size), InvalidProgram, "bytes %zu to %zu of a file of %zu", offset, offset + size,
                           size_);
  std::memcpy(buffer, data_ + offset, size);
  return runtime::Error::Ok;
}

}  // namespace mobizo::trainer
