// Memory in which a kernel cannot go astray unseen.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

namespace mobizo {

// Elements between two pages that nobody may touch. They end where the second begins or, by chance, begin where the first
// ends: reading one element too many ends the program. All bits are set at first.
template <typename T>
class Guarded {
 public:
  explicit Guarded(size_t size) : Guarded(size, next_side()) {}
  explicit Guarded(const std::vector<T>& values) : Guarded(values.size()) { std::copy_n(values.data(), values.size(), data()); }
  Guarded(const Guarded& other) : Guarded(other.size_, other.at_end_) { std::copy_n(other.data(), size_, data()); }
  Guarded& operator=(const Guarded&) = delete;
  Guarded(Guarded&& other) noexcept
      : size_(other.size_), at_end_(other.at_end_), inner_(other.inner_), pages_(std::exchange(other.pages_, nullptr)) {}
  ~Guarded() {
    if (pages_ != nullptr) munmap(pages_, inner_ + 2 * page());
  }

  size_t size() const { return size_; }
  bool at_end() const { return at_end_; }
  T* data() { return reinterpret_cast<T*>(pages_ + page() + (at_end_ ? inner_ - size_ * sizeof(T) : 0)); }
  const T* data() const { return const_cast<Guarded*>(this)->data(); }

 private:
  Guarded(size_t size, bool at_end) : size_(size), at_end_(at_end), inner_((size * sizeof(T) + page() - 1) / page() * page()) {
    void* pages = mmap(nullptr, inner_ + 2 * page(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    pages_ = static_cast<uint8_t*>(pages);
    if (inner_ > 0 && mprotect(pages_ + page(), inner_, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    if (size > 0) std::memset(data(), 0xFF, size * sizeof(T));
  }

  static size_t page() {
    static const auto size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return size;
  }
  static bool next_side() {  // as a coin falls, the same on every machine
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return state >> 31 != 0;
  }

  size_t size_;
  bool at_end_;
  size_t inner_;  // bytes between the two
  uint8_t* pages_ = nullptr;
};

}  // namespace mobizo
