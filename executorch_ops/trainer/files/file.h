// Files: reads that check what they got, writes that leave either the old file or the new one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mobizo::trainer {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the files of the trainer are little endian");

// An open regular file. What it throws is a SystemError, or an Error where the file is too short; both name the path.
class File {
 public:
  // flags as for open(2); O_CLOEXEC is added.
  File(const std::string& path, int flags);
  ~File();
  File(File&& other) noexcept
      : path_(std::move(other.path_)),
        absolute_(std::move(other.absolute_)),
        descriptor_(std::exchange(other.descriptor_, -1)) {}
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  // A new file with these bytes, on the disk and open for appending. It appears at `path` whole, and locked if there are locks,
  // or not at all; a SystemError of EEXIST if there is something already.
  static File created(const std::string& path, std::string_view bytes);

  const std::string& path() const { return path_; }
  int64_t size() const;
  void read(void* out, size_t bytes, int64_t offset) const;
  void append(const void* data, size_t bytes) const;
  void truncate(int64_t size) const;
  void sync() const;
  enum class Lock { kHeld, kTaken, kNone };
  // Keeps others, in this process or another one, from locking the file until it is closed. kTaken if one of them has; kNone if
  // the file system has no locks.
  Lock lock() const;
  // What has befallen the file, if it is no longer at its path with `size` bytes: the predicate of a sentence; "" if it is.
  std::string changed(int64_t size) const;

 private:
  struct Opened {
    int descriptor;
  };
  File(std::string path, Opened opened);

  std::string path_, absolute_;  // the latter whatever directory the process goes to
  int descriptor_;
};

std::string read_file(const std::string& path);

// Makes `path` hold the pieces, one after the other: written to a new file beside it, synced, then renamed. What a killed
// process left beside it goes.
void write_atomically(const std::string& path, const std::vector<std::string_view>& pieces);

// Throws unless `path` is, or can become, a file that is written to; `option` is the name of the argument to blame.
void check_output(const std::string& option, const std::string& path);

// Of a file that is created at `path`, where write_atomically renames one: a link that leads nowhere is in its way, too.
void check_created(const std::string& option, const std::string& path);

bool exists(const std::string& path);

// A file as an option or argument named it.
struct NamedFile {
  std::string option, path;  // the path "" for none
};

// Throws unless each output is another file than every input and the outputs before it, whatever the paths that lead to them.
void check_distinct(const std::vector<NamedFile>& outputs, const std::vector<NamedFile>& inputs);

}  // namespace mobizo::trainer
