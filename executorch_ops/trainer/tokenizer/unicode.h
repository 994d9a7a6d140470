// What a tokenizer asks of Unicode: kinds of characters, and canonical normal forms. The tables are those of
// make_unicode_tables.py.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mobizo::trainer {

const char* unicode_version();

bool is_white_space(uint32_t code);
bool is_word(uint32_t code);         // alphabetic, a mark, a decimal digit, a connector such as _, or a joiner
bool is_numeric(uint32_t code);      // any kind of number
bool is_punctuation(uint32_t code);  // all symbols of ASCII among it

// The ranges of characters, first and last, of a general category ("Lu") or a group of them ("L") that Unicode 14 has not.
std::vector<std::pair<uint32_t, uint32_t>> newer_characters(std::string_view category);

// The canonical normal forms C and D of text in UTF-8.
std::string to_nfc(std::string_view text);
std::string to_nfd(std::string_view text);

}  // namespace mobizo::trainer
