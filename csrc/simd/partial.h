// Loads and stores of the first n < kLanes values for instruction sets without masked memory access: through a whole vector on
// the stack, so that nothing past the n-th element is read or written.
#pragma once

namespace mobizo::MOBIZO_ISA {

template <typename T>
MOBIZO_INLINE F32 load(const T* p, int n) {
  T whole[kLanes] = {};
  std::memcpy(whole, p, sizeof(T) * static_cast<size_t>(n));
  return load(static_cast<const T*>(whole));
}

template <typename T>
MOBIZO_INLINE void store(T* p, F32 a, int n) {
  T whole[kLanes];
  store(static_cast<T*>(whole), a);
  std::memcpy(p, whole, sizeof(T) * static_cast<size_t>(n));
}

}  // namespace mobizo::MOBIZO_ISA
