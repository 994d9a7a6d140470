#include "file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "errors.h"

namespace mobizo::trainer {
namespace {

std::string parent_of(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

void write_all(int descriptor, const char* data, size_t bytes, const std::string& path) {
  while (bytes > 0) {
    const ssize_t written = ::write(descriptor, data, bytes);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw SystemError(errno, "cannot write " + path);
    data += written;
    bytes -= static_cast<size_t>(written);
  }
}

void sync_descriptor(int descriptor, const std::string& path) {
  while (::fsync(descriptor) != 0)
    if (errno != EINTR) throw SystemError(errno, "cannot sync " + path);
}

// A rename lasts through a power cut once its directory is synced. Some file systems do not sync directories.
void sync_directory(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

}  // namespace

File::File(std::string path, int flags) : path_(std::move(path)), descriptor_(::open(path_.c_str(), flags | O_CLOEXEC, 0666)) {
  if (descriptor_ < 0) throw SystemError(errno, "cannot open " + path_);
  struct stat status{};
  const bool known = ::fstat(descriptor_, &status) == 0;
  if (known && S_ISREG(status.st_mode)) return;
  const int code = known ? 0 : errno;
  ::close(descriptor_);
  if (code != 0) throw SystemError(code, "cannot read " + path_);
  fail(path_, ": expected a regular file");
}

File::~File() { ::close(descriptor_); }

int64_t File::size() const {
  struct stat status{};
  if (::fstat(descriptor_, &status) != 0) throw SystemError(errno, "cannot read " + path_);
  return status.st_size;
}

void File::read(void* out, size_t bytes, int64_t offset) const {
  char* to = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t got = ::pread(descriptor_, to, bytes, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw SystemError(errno, "cannot read " + path_);
    if (got == 0) fail(path_, ": the file ends at byte ", offset, ", expected ", bytes, " more");
    to += got;
    offset += got;
    bytes -= static_cast<size_t>(got);
  }
}

void File::append(const void* data, size_t bytes) const {
  write_all(descriptor_, static_cast<const char*>(data), bytes, path_);
}

void File::truncate(int64_t size) const {
  if (::ftruncate(descriptor_, size) != 0) throw SystemError(errno, "cannot truncate " + path_);
}

void File::sync() const { sync_descriptor(descriptor_, path_); }

void File::lock() const {
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) == 0) return;
  if (errno == EWOULDBLOCK) fail(path_, ": another process is writing this file");
  throw SystemError(errno, "cannot lock " + path_);
}

std::string read_file(const std::string& path) {
  const File file(path, O_RDONLY);
  std::string bytes(static_cast<size_t>(file.size()), '\0');
  file.read(bytes.data(), bytes.size(), 0);
  return bytes;
}

void write_atomically(const std::string& path, const std::vector<std::string_view>& pieces) {
  struct stat status{};
  if (::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) fail(path, ": not a regular file");
  std::string temporary = path + ".XXXXXX";
  const int descriptor = ::mkstemp(temporary.data());
  if (descriptor < 0) throw SystemError(errno, "cannot create a file beside " + path);
  try {
    for (const std::string_view piece : pieces) write_all(descriptor, piece.data(), piece.size(), path);
    const mode_t mask = ::umask(0);
    ::umask(mask);
    ::fchmod(descriptor, 0666 & ~mask);  // mkstemp's files are the owner's alone
    sync_descriptor(descriptor, path);
    if (::rename(temporary.c_str(), path.c_str()) != 0) throw SystemError(errno, "cannot write " + path);
  } catch (...) {
    ::close(descriptor);
    ::unlink(temporary.c_str());
    throw;
  }
  ::close(descriptor);
  sync_directory(parent_of(path));
}

void check_output(const std::string& option, const std::string& path) {
  struct stat status{};
  const std::string parent = parent_of(path);
  if (path.empty() || path.back() == '/') fail(option, ": expected the name of a file, got '", path, "'");
  if (::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) fail(option, ": ", path, " is not a regular file");
  if (::stat(parent.c_str(), &status) != 0) throw SystemError(errno, option + ": cannot write to " + parent);
  if (!S_ISDIR(status.st_mode)) fail(option, ": ", parent, " is not a directory");
  if (::access(parent.c_str(), W_OK | X_OK) != 0) throw SystemError(errno, option + ": cannot write to " + parent);
}

bool exists(const std::string& path) {
  struct stat status{};
  return ::stat(path.c_str(), &status) == 0;
}

}  // namespace mobizo::trainer
