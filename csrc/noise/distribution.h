#pragma once

#include <cstdint>

namespace mobizo {

enum class Distribution : int32_t { kGaussian, kRademacher };

}  // namespace mobizo
