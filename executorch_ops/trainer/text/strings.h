// Texts in UTF-8 as Python sees them: white space, and how an error quotes what it is about. Both sides of the package say the
// same of the same file. Bytes that are no UTF-8 are taken for characters that are no space.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mobizo::trainer {

// What str.strip takes away.
bool is_python_space(uint32_t code);
// Whether there is nothing to see of a character: a control or format character, or a space or separator (general categories
// Cc, Cf, Zs, Zl, Zp).
bool is_invisible(uint32_t code);

std::string_view stripped_left(std::string_view text);
std::string_view stripped_right(std::string_view text);
std::string_view stripped(std::string_view text);

size_t characters(std::string_view text);
// The bytes of the first `count` characters; all of them if there are fewer.
size_t bytes_of(std::string_view text, size_t count);

// As Python's repr, but for characters that no version of Unicode has assigned, which stand for themselves.
std::string quoted(std::string_view text);
// Quoted, and without its end if it is long: mobizo_kernels/errors.py.
std::string shortened(std::string_view text, size_t most = 40);
// Names in quotes; the last of many are counted only.
std::string listed(const std::vector<std::string>& names, size_t most = 12);

// A number as Python's repr writes it.
std::string float_text(double value);

}  // namespace mobizo::trainer
