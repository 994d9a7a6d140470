// What every function of mobizo.h goes through: exceptions become a status and a message, arguments are checked, structs are
// those that the caller was compiled with.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "../files/errors.h"
#include "mobizo.h"

namespace mobizo::trainer::c_interface {

// A call was cancelled: what() says where.
class Cancelled : public Error {
  using Error::Error;
};

// A handle is in use.
class Busy : public Error {
  using Error::Error;
};

// Keeps what the exception says for this thread's mobizo_last_message(), and names it.
mobizo_status record(const std::exception_ptr& exception) noexcept;

// Runs the body of a function of the interface.
template <typename Work>
mobizo_status guarded(Work work) noexcept {
  try {
    work();
    return MOBIZO_OK;
  } catch (...) {
    return record(std::current_exception());
  }
}

// `pointer`, unless it is NULL.
template <typename T>
T* given(T* pointer, const char* name) {
  if (pointer == nullptr) fail(name, " must not be NULL");
  return pointer;
}

// Copies that mobizo_free() releases.
char* allocated(const std::string& text);
void* allocated(const void* data, size_t bytes);
template <typename T>
T* allocated(const std::vector<T>& values) {
  return static_cast<T*>(allocated(values.data(), values.size() * sizeof(T)));
}

// The size that a struct had when it came into the interface: the least that a caller may say.
template <typename T>
inline constexpr uint64_t kFirstSize = 0;
template <>
inline constexpr uint64_t kFirstSize<mobizo_train_options> = 112;
template <>
inline constexpr uint64_t kFirstSize<mobizo_objective> = 80;
template <>
inline constexpr uint64_t kFirstSize<mobizo_callbacks> = 40;
template <>
inline constexpr uint64_t kFirstSize<mobizo_train_result> = 80;
template <>
inline constexpr uint64_t kFirstSize<mobizo_readout> = 56;
template <>
inline constexpr uint64_t kFirstSize<mobizo_evaluation> = 48;
template <>
inline constexpr uint64_t kFirstSize<mobizo_tokenize_options> = 80;
template <>
inline constexpr uint64_t kFirstSize<mobizo_generate_options> = 48;
template <>
inline constexpr uint64_t kFirstSize<mobizo_generated> = 56;

template <typename T>
void check_size(uint64_t size, const char* name) {
  static_assert(kFirstSize<T> > 0 && kFirstSize<T> <= sizeof(T) && sizeof(void*) == 8);
  if (size < kFirstSize<T>)
    fail(name, ".size must be at least ", kFirstSize<T>, ", got ", size, ": set it to the sizeof of the struct");
}

// Gives a struct of the caller, of `size` bytes, its defaults: zeros for members that this version does not know.
template <typename T>
void initialize(T* caller, uint64_t size, const T& defaults) {
  check_size<T>(size, "options");
  std::memset(given(caller, "options"), 0, static_cast<size_t>(size));
  std::memcpy(caller, &defaults, static_cast<size_t>(std::min<uint64_t>(size, sizeof(T))));
  caller->size = size;
}

// A struct that the caller fills: its members on top of `value`. Those of a later version, which this one does not know, must
// be zeros.
template <typename T>
T taken(const T* caller, const char* name, T value = {}) {
  if (caller == nullptr) return value;
  check_size<T>(caller->size, name);
  const auto* bytes = reinterpret_cast<const char*>(caller);
  if (caller->size > sizeof(T) && std::any_of(bytes + sizeof(T), bytes + caller->size, [](char byte) { return byte != 0; }))
    fail(name, " has members that this version, ", mobizo_version(), ", does not know");
  std::memcpy(&value, caller, static_cast<size_t>(std::min<uint64_t>(caller->size, sizeof(T))));
  return value;
}

// Checks a struct that the caller wants filled, if it is there.
template <typename T>
void check_wanted(const T* caller, const char* name) {
  if (caller != nullptr) check_size<T>(caller->size, name);
}

// Fills it as far as it goes, and says in its size how far that was.
template <typename T>
void fill(T* caller, T value) {
  if (caller == nullptr) return;
  value.size = std::min<uint64_t>(caller->size, sizeof(T));
  std::memcpy(caller, &value, static_cast<size_t>(value.size));
}

}  // namespace mobizo::trainer::c_interface
