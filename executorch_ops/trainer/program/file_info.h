// What a file of the trainer says of itself.
#pragma once

#include <string>

#include "../files/json.h"

namespace mobizo::trainer {

// An object whose "kind" is "program", "data set", "adapter" or "journal", and what files of that kind hold. Throws Error if
// the file is damaged or of no such kind.
Json file_info(const std::string& path);

}  // namespace mobizo::trainer
