// Comma-separated values (RFC 4180), by the rules of Python's csv module with strict=True, and stricter about quotes:
// mobizo_kernels/data/files.py.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace mobizo::trainer {

class CsvReader {
 public:
  // `text` has to outlive it.
  explicit CsvReader(std::string_view text);

  bool done() const { return at_ == lines_.size(); }
  // Lines that have been read.
  size_t line() const { return at_; }
  // The cells of the next record; none of an empty line. Throws Error, whose text goes on after "line 5", if a quote is not
  // closed, or stands in a cell without quotes around it.
  std::vector<std::string> next();

 private:
  std::vector<std::string_view> lines_;
  size_t at_ = 0;
};

}  // namespace mobizo::trainer
