#include "file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <memory>
#include <random>

#include "errors.h"

namespace mobizo::trainer {
namespace {

std::string parent_of(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

// Empty if the current directory is gone.
std::string absolute(const std::string& path) {
  if (!path.empty() && path[0] == '/') return path;
  const std::unique_ptr<char, decltype(&std::free)> directory(::getcwd(nullptr, 0), &std::free);
  return directory ? std::string(directory.get()) + "/" + path : "";
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

// What is not ready yet: `.NAME-1a2b3c4d.mobizo`, a name of its own for each time.
constexpr std::string_view kScratchSuffix = ".mobizo";
constexpr size_t kScratchDigits = 8;

std::string scratch_name(const std::string& path) {
  std::random_device random;
  std::string digits;
  for (size_t i = 0; i < kScratchDigits; ++i) digits += "0123456789abcdef"[random() & 15];
  return parent_of(path) + "/." + path.substr(path.find_last_of('/') + 1) + "-" + digits + std::string(kScratchSuffix);
}

bool is_scratch_name(std::string_view name) {
  constexpr size_t kEnd = kScratchDigits + kScratchSuffix.size();
  if (name.size() < kEnd + 3 || name[0] != '.' || name.substr(name.size() - kScratchSuffix.size()) != kScratchSuffix)
    return false;
  const std::string_view digits = name.substr(name.size() - kEnd, kScratchDigits);
  return name[name.size() - kEnd - 1] == '-' && digits.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

// Removes what processes left beside `path` that were killed while they wrote. What is locked belongs to a living one and
// stays, and so does everything where there are no locks.
void remove_dead_scratch(const std::string& path) {
  const std::string parent = parent_of(path);
  DIR* directory = ::opendir(parent.c_str());
  if (directory == nullptr) return;
  while (const dirent* entry = ::readdir(directory)) {
    if (!is_scratch_name(entry->d_name)) continue;
    try {
      const std::string scratch = parent + "/" + entry->d_name;
      const File file(scratch, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
      if (file.lock() == File::Lock::kHeld) ::unlink(scratch.c_str());
    } catch (const Error&) {  // gone meanwhile, or a directory
    }
  }
  ::closedir(directory);
}

// A new file beside `path` under a name of its own, locked while it is open; in the end it is removed unless it was renamed.
class Scratch {
 public:
  explicit Scratch(const std::string& path) : file_(open(path)) {}
  ~Scratch() { ::unlink(file_.path().c_str()); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  const File& file() const { return file_; }

 private:
  static File open(const std::string& path) {
    remove_dead_scratch(path);
    for (;;) {
      File file = create(path);
      // Before it was locked, another process may have taken it for that of a dead one.
      if (file.lock() != File::Lock::kTaken && exists(file.path())) return file;
      ::unlink(file.path().c_str());
    }
  }

  static File create(const std::string& path) {
    try {
      return {scratch_name(path), O_RDWR | O_CREAT | O_EXCL | O_APPEND};
    } catch (const SystemError& error) {
      throw SystemError(error.code(), "cannot create a file beside " + path);
    }
  }

  File file_;
};

// Whether errno says that the file system has no hard links.
bool links_unsupported(int code) {
  // NOLINTNEXTLINE(misc-redundant-expression): two of them are one on Linux, not everywhere
  return code == EPERM || code == EOPNOTSUPP || code == ENOTSUP || code == ENOSYS || code == EMLINK || code == EXDEV;
}

// What tells a file from all others: where it is, or where it would be created.
struct Identity {
  explicit Identity(const std::string& path) {
    struct stat status{};
    there = ::stat(path.c_str(), &status) == 0;
    if (!there) {
      name = path.substr(path.find_last_of('/') + 1);
      if (::stat(parent_of(path).c_str(), &status) != 0) name = path;
    }
    device = status.st_dev;
    inode = status.st_ino;
  }
  bool operator==(const Identity& other) const {
    return there == other.there && device == other.device && inode == other.inode && name == other.name;
  }

  bool there;
  dev_t device;
  ino_t inode;
  std::string name;
};

}  // namespace

File::File(const std::string& path, int flags) : File(path, Opened{::open(path.c_str(), flags | O_CLOEXEC, 0666)}) {}

File::File(std::string path, Opened opened) : path_(std::move(path)), descriptor_(opened.descriptor) {
  if (descriptor_ < 0) throw SystemError(errno, "cannot open " + path_);
  absolute_ = absolute(path_);
  struct stat status{};
  const bool known = ::fstat(descriptor_, &status) == 0;
  if (known && S_ISREG(status.st_mode)) return;
  const int code = known ? 0 : errno;
  ::close(descriptor_);
  if (code != 0) throw SystemError(code, "cannot read " + path_);
  fail(path_, ": expected a regular file");
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

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

File::Lock File::lock() const {
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) == 0) return Lock::kHeld;
  if (errno == EWOULDBLOCK) return Lock::kTaken;
  for (const int code : {ENOLCK, ENOTSUP, EOPNOTSUPP, ENOSYS, EINVAL})
    if (errno == code) return Lock::kNone;
  throw SystemError(errno, "cannot lock " + path_);
}

std::string File::changed(int64_t size) const {
  struct stat mine{}, there{};
  if (::fstat(descriptor_, &mine) != 0) throw SystemError(errno, "cannot read " + path_);
  const bool found = ::stat(absolute_.c_str(), &there) == 0;
  if (found && (mine.st_dev != there.st_dev || mine.st_ino != there.st_ino)) return "was replaced by another file";
  if (!found || mine.st_nlink == 0) return "was removed or renamed";
  if (mine.st_size == size) return "";
  return message("has ", mine.st_size, " bytes where ", size, " were written, so another program changed it,");
}

std::string read_file(const std::string& path) {
  const File file(path, O_RDONLY);
  std::string bytes(static_cast<size_t>(file.size()), '\0');
  file.read(bytes.data(), bytes.size(), 0);
  return bytes;
}

File File::created(const std::string& path, std::string_view bytes) {
  const Scratch scratch(path);
  scratch.file().append(bytes.data(), bytes.size());
  scratch.file().sync();
  if (::link(scratch.file().path().c_str(), path.c_str()) != 0) {  // unlike a renaming, it fails if another run was faster
    if (!links_unsupported(errno)) throw SystemError(errno, "cannot create " + path);
    File file(path, O_RDWR | O_CREAT | O_EXCL | O_APPEND);  // which a crash may leave cut short
    file.lock();
    try {
      file.append(bytes.data(), bytes.size());
      file.sync();
    } catch (...) {
      ::unlink(path.c_str());
      throw;
    }
    return file;
  }
  const int descriptor = ::fcntl(scratch.file().descriptor_, F_DUPFD_CLOEXEC, 0);  // which shares the lock
  sync_directory(parent_of(path));
  return {path, Opened{descriptor}};
}

void write_atomically(const std::string& path, const std::vector<std::string_view>& pieces) {
  struct stat status{};
  if (::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) fail(path, ": not a regular file");
  const Scratch scratch(path);
  try {
    for (const std::string_view piece : pieces) scratch.file().append(piece.data(), piece.size());
    scratch.file().sync();
  } catch (const SystemError& error) {
    throw SystemError(error.code(), "cannot write " + path);
  }
  if (::rename(scratch.file().path().c_str(), path.c_str()) != 0) throw SystemError(errno, "cannot write " + path);
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

void check_created(const std::string& option, const std::string& path) {
  check_output(option, path);
  char target = 0;
  const bool link = ::readlink(path.c_str(), &target, 1) >= 0;  // lstat() is one that a glibc of before 2.33 has not
  if (link && !exists(path)) fail(option, ": ", path, " is a link that leads nowhere");
}

void check_distinct(const std::vector<NamedFile>& outputs, const std::vector<NamedFile>& inputs) {
  std::vector<NamedFile> others = inputs;
  for (const NamedFile& output : outputs) {
    if (output.path.empty()) continue;
    const Identity own(output.path);
    for (const NamedFile& other : others)
      if (!other.path.empty() && Identity(other.path) == own)
        fail(output.option, ": ", output.path, " is the same file as ", other.option, ": name another one");
    others.push_back(output);
  }
}

bool exists(const std::string& path) {
  struct stat status{};
  return ::stat(path.c_str(), &status) == 0;
}

}  // namespace mobizo::trainer
