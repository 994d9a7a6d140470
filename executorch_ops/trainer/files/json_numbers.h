// Numbers of JSON with a fraction or an exponent, for its reader and its writer.
#pragma once

#include <cmath>
#include <locale>
#include <sstream>
#include <string>
#include <string_view>

namespace mobizo::trainer {

// Whether `text` is a number within float64, to which `value` is set. strtod and printf would follow the locale of the process,
// which an application may have set.
inline bool to_double(std::string_view text, double& value) {
  std::istringstream stream{std::string(text)};
  stream.imbue(std::locale::classic());
  return static_cast<bool>(stream >> value) && std::isfinite(value);
}

}  // namespace mobizo::trainer
