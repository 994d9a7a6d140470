#include "boundary.h"

#include <cstdlib>
#include <new>

#include "../files/journal.h"

namespace mobizo::trainer::c_interface {
namespace {

constexpr const char* kNames[] = {"MOBIZO_OK",           "MOBIZO_INVALID", "MOBIZO_SYSTEM",    "MOBIZO_CANCELLED",
                                  "MOBIZO_JOURNAL_LOST", "MOBIZO_BUSY",    "MOBIZO_NO_MEMORY", "MOBIZO_INTERNAL"};

struct Failure {
  std::string message;
  int32_t code = 0;
};

Failure& last_failure() {
  thread_local Failure failure;
  return failure;
}

mobizo_status keep(mobizo_status status, const char* message, int code = 0) noexcept {
  Failure& failure = last_failure();
  failure.code = code;
  try {
    failure.message = printable(message);
  } catch (...) {
    failure.message.clear();  // no memory for the sentence: the status has to do
  }
  return status;
}

}  // namespace

mobizo_status record(const std::exception_ptr& exception) noexcept {
  try {
    std::rethrow_exception(exception);
  } catch (const Cancelled& error) {
    return keep(MOBIZO_CANCELLED, error.what());
  } catch (const Busy& error) {
    return keep(MOBIZO_BUSY, error.what());
  } catch (const JournalLost& error) {
    return keep(MOBIZO_JOURNAL_LOST, error.what());
  } catch (const SystemError& error) {
    return keep(MOBIZO_SYSTEM, error.what(), error.code());
  } catch (const Error& error) {
    return keep(MOBIZO_INVALID, error.what());
  } catch (const std::bad_alloc&) {
    return keep(MOBIZO_NO_MEMORY, "memory is exhausted");
  } catch (const std::exception& error) {
    return keep(MOBIZO_INTERNAL, error.what());
  } catch (...) {
    return keep(MOBIZO_INTERNAL, "an exception of an unknown type, which may be that of a callback");
  }
}

void* allocated(const void* data, size_t bytes) {
  void* copy = std::malloc(std::max<size_t>(bytes, 1));
  if (copy == nullptr) throw std::bad_alloc();
  if (bytes > 0) std::memcpy(copy, data, bytes);
  return copy;
}

char* allocated(const std::string& text) { return static_cast<char*>(allocated(text.c_str(), text.size() + 1)); }

}  // namespace mobizo::trainer::c_interface

using namespace mobizo::trainer::c_interface;

const char* mobizo_version(void) { return MOBIZO_VERSION; }

const char* mobizo_last_message(void) { return last_failure().message.c_str(); }

int32_t mobizo_last_errno(void) { return last_failure().code; }

const char* mobizo_status_name(mobizo_status status) {
  const bool known = status >= 0 && status < static_cast<mobizo_status>(std::size(kNames));
  return known ? kNames[status] : "unknown";
}

void mobizo_free(void* allocated) { std::free(allocated); }
