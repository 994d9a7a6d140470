// A program's file in memory, for ExecuTorch to load from.
#pragma once

#include <executorch/runtime/core/data_loader.h>

#include <string>

namespace mobizo::trainer {

// Maps the whole file once, and what it hands out stays readable for as long as it lives, even after it was freed: XNNPACK's
// cache of packed weights frees constants that are not packed, such as those of norms, and still reads them. What is freed only
// leaves the resident memory, from where a read brings it back.
class MappedLoader final : public executorch::runtime::DataLoader {
 public:
  explicit MappedLoader(const std::string& path);
  ~MappedLoader() override;
  MappedLoader(const MappedLoader&) = delete;
  MappedLoader& operator=(const MappedLoader&) = delete;

  executorch::runtime::Result<executorch::runtime::FreeableBuffer> load(size_t offset, size_t size,
                                                                        const SegmentInfo& info) const override;
  executorch::runtime::Error load_into(size_t offset, size_t size, const SegmentInfo& info, void* buffer) const override;
  executorch::runtime::Result<size_t> size() const override { return size_; }

 private:
  bool holds(size_t offset, size_t size) const { return offset <= size_ && size <= size_ - offset; }

  size_t size_;
  char* data_;
};

}  // namespace mobizo::trainer
