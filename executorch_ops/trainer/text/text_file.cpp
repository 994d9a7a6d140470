#include "text_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <system_error>

#include "../files/errors.h"
#include "../files/utf8.h"
#include "strings.h"

namespace mobizo::trainer {
namespace {

constexpr std::string_view kMark = "\xEF\xBB\xBF";

class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

[[noreturn]] void unreadable(const std::string& path, int code) {
  if (code == ENOENT) fail("data: there is no file ", quoted(path));
  fail("data: ", path, " cannot be read (", std::generic_category().message(code), ")");
}

struct Stamp {
  int64_t size, seconds, nanoseconds;
  bool operator!=(const Stamp& other) const {
    return size != other.size || seconds != other.seconds || nanoseconds != other.nanoseconds;
  }
};

Stamp stamp_of(int descriptor, const std::string& path) {
  struct stat status{};
  if (::fstat(descriptor, &status) != 0) unreadable(path, errno);
  return {status.st_size, status.st_mtim.tv_sec, status.st_mtim.tv_nsec};
}

std::string content_of(const std::string& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) unreadable(path, errno);
  if (!S_ISREG(status.st_mode))
    fail("data: expected a file, and ", quoted(path), " is ", S_ISDIR(status.st_mode) ? "a directory" : "a pipe or device");
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) unreadable(path, errno);
  const Stamp before = stamp_of(file.get(), path);
  std::string content;
  std::string piece(1 << 20, '\0');
  for (;;) {
    const ssize_t got = ::read(file.get(), piece.data(), piece.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) unreadable(path, errno);
    if (got == 0) break;
    content.append(piece, 0, static_cast<size_t>(got));
  }
  if (before != stamp_of(file.get(), path)) fail("data: ", path, " changed while it was read");
  return content;
}

// "is UTF-16" and the like, empty if nothing is known.
std::string format_of(std::string_view content) {
  constexpr std::pair<std::string_view, const char*> kOthers[] = {{"\xff\xfe", "UTF-16"},
                                                                  {"\xfe\xff", "UTF-16"},
                                                                  {"\x1f\x8b", "compressed by gzip"},
                                                                  {"BZh", "compressed by bzip2"},
                                                                  {"\xfd"
                                                                   "7zXZ",
                                                                   "compressed by xz"},
                                                                  {"\x28\xb5\x2f\xfd", "compressed by zstd"},
                                                                  {"PK\x03\x04", "a zip archive"},
                                                                  {"PAR1", "a Parquet file"}};
  for (const auto& [start, name] : kOthers)
    if (content.substr(0, start.size()) == start) return message("is ", name);
  return "";
}

}  // namespace

std::string read_text(const std::string& path) {
  std::string content = content_of(path);
  const auto refuse = [&](const std::string& found, size_t at) {
    const std::string known = format_of(content);
    const auto line = 1 + std::count(content.begin(), content.begin() + static_cast<std::ptrdiff_t>(at), '\n');
    fail("data: ", path, " ", known.empty() ? message("has ", found, " on line ", line) : known, ", expected text in UTF-8");
  };
  const size_t valid = utf8_valid_bytes(content);
  if (valid < content.size()) {
    char byte[8];
    std::snprintf(byte, sizeof byte, "0x%02x", static_cast<unsigned>(static_cast<uint8_t>(content[valid])));
    refuse(message("the byte ", byte), valid);
  }
  const size_t zero = content.find('\0');
  if (zero != std::string::npos) refuse("a zero byte", zero);
  if (content.compare(0, kMark.size(), kMark) == 0) content.erase(0, kMark.size());
  return content;
}

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  for (size_t at = 0; at < text.size();) {
    size_t end = std::min(text.find_first_of("\r\n", at), text.size());
    if (end < text.size()) end += text.substr(end, 2) == "\r\n" ? 2 : 1;
    lines.push_back(text.substr(at, end - at));
    at = end;
  }
  return lines;
}

std::string suffix_of(const std::string& path) {
  const std::string name = path.substr(path.find_last_of('/') + 1);
  const size_t dot = name.find_last_of('.');
  if (dot == std::string::npos || dot == 0 || dot + 1 == name.size()) return "";
  std::string suffix = name.substr(dot);
  for (char& c : suffix)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return suffix;
}

}  // namespace mobizo::trainer
