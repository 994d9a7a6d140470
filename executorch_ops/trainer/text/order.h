// Which rows a step takes. mobizo_kernels/data/batches.py and training/readout.py are the twins in Python.
#pragma once

#include <cstdint>
#include <vector>

#include "chat.h"

namespace mobizo::trainer {

// The rows of `steps` batches, one batch after the other: classes in equal parts, and rows of about one length together. Throws
// Error if the rows give no batch of that size.
std::vector<int32_t> training_order(const std::vector<Row>& rows, int64_t batch_size, uint64_t seed, int64_t steps);

// All rows by chance, one of each label in turn while it has any.
std::vector<int32_t> numbers_in_turn(const std::vector<Row>& rows, uint64_t seed);

}  // namespace mobizo::trainer
