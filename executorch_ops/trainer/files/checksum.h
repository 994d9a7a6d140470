// Checksums of files: against damage, not against malice.
#pragma once

#include <cstdint>
#include <string>

#include "file.h"

namespace mobizo::trainer {

// CRC-32 of `size` bytes from `begin` on, read in pieces; `before` is that of what comes before them.
uint32_t crc32_of(const File& file, int64_t begin, int64_t size, uint32_t before = 0);

// Eight hexadecimal digits.
std::string hex(uint32_t crc);

// The checksum of a training program. Throws Error unless the file ends with it. ExecuTorch takes no notice of what follows a
// program, and trusts the program: one that is damaged may end the process, or train to another adapter.
uint32_t check_program(const std::string& path);

}  // namespace mobizo::trainer
