// The fixed three-way split of texts, by a hash: the same rows, in any order, always give the same split.
// mobizo_kernels/data/{datasets,conversations}.py are the twins in Python.
#pragma once

#include <string>
#include <vector>

#include "rows.h"

namespace mobizo::trainer {

template <typename T>
struct Splits {
  std::vector<T> train, validation, test;
};

// Every prefix of a list holds the labels in about the proportions of the list. What is odd about the rows, but no error, is
// appended to `warnings`. Throws Error for fewer than two labels, or too few texts of one.
Splits<Example> split_examples(const std::vector<Example>& rows, std::vector<std::string>& warnings);

// Rows that begin with the same question stay together; if they are more than go to validation, those that begin with the same
// two, and so on. Throws Error for fewer than three groups.
Splits<Conversation> split_conversations(const std::vector<Conversation>& rows);

// The labels that occur, sorted.
std::vector<std::string> labels_of(const std::vector<Example>& rows);

}  // namespace mobizo::trainer
