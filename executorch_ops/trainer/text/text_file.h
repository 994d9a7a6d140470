// A file of texts, read whole and strictly. mobizo_kernels/data/files.py takes and refuses the same files, in the same words.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace mobizo::trainer {

// All of a file, UTF-8 without a byte order mark. Throws Error if it is no file, changes while it is read, is not UTF-8 or
// holds a zero byte.
std::string read_text(const std::string& path);

// The lines of a text, each with what ends it: a line feed, a carriage return, or both.
std::vector<std::string_view> lines_of(std::string_view text);

// The end of a file's name from its last dot on, in lower case; "" if it has none.
std::string suffix_of(const std::string& path);

}  // namespace mobizo::trainer
