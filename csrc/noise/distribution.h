#pragma once

#include <cstdint>
#include <string_view>

namespace mobizo {

enum class Distribution : int32_t { kGaussian, kRademacher, kOuter };

constexpr std::string_view kDistributionNames[] = {"gaussian", "rademacher", "outer"};  // in the order of their values
#define MOBIZO_DISTRIBUTIONS "'gaussian', 'rademacher' or 'outer'"                      // for messages

// False if there is no distribution of that name.
constexpr bool find_distribution(std::string_view name, Distribution* distribution) {
  int32_t value = 0;
  for (const std::string_view known : kDistributionNames) {
    if (known == name) {
      *distribution = static_cast<Distribution>(value);
      return true;
    }
    ++value;
  }
  return false;
}

}  // namespace mobizo
