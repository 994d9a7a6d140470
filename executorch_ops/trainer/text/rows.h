// The rows of a file of texts: labelled texts, or conversations. mobizo_kernels/data/{files,conversations}.py take and refuse
// the same files, in the same words.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chat.h"

namespace mobizo::trainer {

using Columns = std::vector<std::pair<std::string, std::string>>;

// One text with its label.
struct Example {
  std::string text;  // a prompt may cut its end
  std::string label;
  Columns columns;  // what else a prompt shows
};

struct Conversation {
  std::vector<Message> messages;  // the last is an answer
  std::string where;              // file and line
};

// Every row of a .csv or .jsonl file. Throws Error, naming the line.
std::vector<Example> read_examples(const std::string& path, const std::string& text_column, const std::string& label_column,
                                   const std::vector<std::string>& columns);

// Every row of a .jsonl file: {"prompt", "response"} or {"messages"}. Throws Error, naming the line.
std::vector<Conversation> read_conversations(const std::string& path);

}  // namespace mobizo::trainer
