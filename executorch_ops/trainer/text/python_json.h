// JSON as Python's json writes it, byte for byte, and values as its repr does.
#pragma once

#include <string>

#include "../files/json.h"

namespace mobizo::trainer {

struct JsonStyle {
  bool ascii = true;    // other characters as \u escapes
  bool spaced = true;   // a space behind commas and colons
  bool sorted = false;  // names of objects in their order
};

std::string python_json(const Json& json, JsonStyle style);
std::string python_repr(const Json& json);

bool is_object(const Json& json);
bool is_array(const Json& json);
inline bool is_container(const Json& json) { return is_object(json) || is_array(json); }
// "a list", "an object", "true or false", "a number" or "a string".
const char* kind_of(const Json& json);

}  // namespace mobizo::trainer
