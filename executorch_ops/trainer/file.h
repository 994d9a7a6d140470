// Files: reads that check what they got, writes that leave either the old file or the new one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mobizo::trainer {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the files of the trainer are little endian");

// An open regular file. What it throws is a SystemError, or an Error where the file is too short; both name the path.
class File {
 public:
  // flags as for open(2); O_CLOEXEC is added.
  File(std::string path, int flags);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& path() const { return path_; }
  int64_t size() const;
  void read(void* out, size_t bytes, int64_t offset) const;
  void append(const void* data, size_t bytes) const;
  void truncate(int64_t size) const;
  void sync() const;
  // Keeps other processes from locking the file until it is closed; an Error if one has.
  void lock() const;

 private:
  std::string path_;
  int descriptor_;
};

std::string read_file(const std::string& path);

// Makes `path` hold the pieces, one after the other: written to a new file beside it, synced, then renamed.
void write_atomically(const std::string& path, const std::vector<std::string_view>& pieces);

// Throws unless `path` is, or can become, a file that is written to; `option` is the name of the argument to blame.
void check_output(const std::string& option, const std::string& path);

bool exists(const std::string& path);

}  // namespace mobizo::trainer
