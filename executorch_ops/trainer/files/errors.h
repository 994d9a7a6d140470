// How the trainer reports what it cannot do: a sentence that names the argument or the file, what was expected and what came.
#pragma once

#include <locale>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>

namespace mobizo::trainer {

// One line whatever is quoted in it: a file may hold what would break the line, or command a terminal.
inline std::string printable(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  return text;
}

// Input that does not fit: a file, an option, a data set of another model.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& what) : std::runtime_error(printable(what)) {}
};

// The operating system refused something; `code` is its errno.
class SystemError : public Error {
 public:
  SystemError(int code, const std::string& what) : Error(what + ": " + std::generic_category().message(code)), code_(code) {}
  int code() const { return code_; }

 private:
  int code_;
};

// The parts one after the other, written alike in every locale.
template <typename... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream stream;
  stream.imbue(std::locale::classic());
  (stream << ... << parts);
  return stream.str();
}

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Error(message(parts...));
}

// Runs `work`; an Error that leaves it gets `where` in front.
template <typename Work>
auto blaming(const std::string& where, Work work) -> decltype(work()) {
  try {
    return work();
  } catch (const SystemError&) {
    throw;
  } catch (const Error& error) {
    fail(where, ": ", error.what());
  }
}

}  // namespace mobizo::trainer
