// Handles: numbers that are never given twice, in the guise of pointers that nobody follows. So one that is closed, or never
// was, is found out.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "../loop/generator.h"
#include "../program/program.h"
#include "../text/tokenizer_file.h"
#include "boundary.h"

namespace mobizo::trainer::c_interface {

// A number that no handle has had.
uintptr_t next_handle();

// The objects behind the handles of one type. Any number of threads may use it at once.
template <typename Handle, typename Object>
class Registry {
 public:
  // what: the name of an argument that holds such a handle.
  explicit Registry(const char* what) : what_(what) {}

  Handle* add(std::shared_ptr<Object> object) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const uintptr_t number = next_handle();
    objects_.emplace(number, std::move(object));
    return reinterpret_cast<Handle*>(number);
  }
  // Throws Error unless the handle is open. `with` is called on the object while no other thread can find or remove it.
  template <typename With>
  std::shared_ptr<Object> find(const Handle* handle, With with) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = entry(handle)->second;
    with(*found);
    return found;
  }
  std::shared_ptr<Object> find(const Handle* handle) {
    return find(handle, [](Object&) {});
  }
  // Removes the object, unless `before` throws. It goes with the last that uses it.
  template <typename Before>
  std::shared_ptr<Object> remove(const Handle* handle, Before before) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto position = entry(handle);
    before(*position->second);
    std::shared_ptr<Object> object = std::move(position->second);
    objects_.erase(position);
    return object;
  }

 private:
  typename std::map<uintptr_t, std::shared_ptr<Object>>::iterator entry(const Handle* handle) {
    if (handle == nullptr) fail(what_, " must not be NULL");
    const auto found = objects_.find(reinterpret_cast<uintptr_t>(handle));
    if (found == objects_.end()) fail(what_, " is no open ", what_, ": it was closed, or is a handle of another kind");
    return found;
  }

  const char* what_;
  std::mutex mutex_;
  std::map<uintptr_t, std::shared_ptr<Object>> objects_;
};

struct OpenProgram {
  OpenProgram(const std::string& path, int64_t threads) : program(path, threads) {}

  Program program;
  std::optional<Generator> generator;  // of the first text that is written
  std::atomic<bool> busy{false};       // becomes true under the lock of the registry alone
  std::atomic<bool> cancelled{false};
};

Registry<mobizo_program, OpenProgram>& programs();
Registry<mobizo_tokenizer, const TokenizerFile>& tokenizers();

// The tokenizer, which has to be that of the program or, where that does not say, one whose tokens it has.
std::shared_ptr<const TokenizerFile> tokenizer_for(const Program& program, const mobizo_tokenizer* handle);

// A call's use of a program, which no other call has meanwhile: throws Busy if one has.
class ProgramUse {
 public:
  explicit ProgramUse(mobizo_program* handle);
  ~ProgramUse();
  ProgramUse(const ProgramUse&) = delete;
  ProgramUse& operator=(const ProgramUse&) = delete;

  Program& program() const { return open_->program; }
  // Throws Error if the program cannot write.
  Generator& generator() const { return open_->generator ? *open_->generator : open_->generator.emplace(open_->program); }
  // Throws Cancelled, `where` at its end, if mobizo_cancel() was called.
  void check_cancelled(const std::string& where) const;

 private:
  std::shared_ptr<OpenProgram> open_;
};

}  // namespace mobizo::trainer::c_interface
