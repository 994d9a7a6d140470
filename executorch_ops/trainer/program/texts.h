// What a program says of the texts that its tokens are made of: the prompt, and the chat template in pieces.
// mobizo_kernels/executorch/description_texts.py is the twin in Python: the same fields, checks and sentences.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../files/json.h"

namespace mobizo::trainer {

// How a labelled text becomes a row: a template that holds {text}, and a word for each label.
struct PromptDescription {
  std::string template_text;
  std::vector<std::string> labels, words;
};

// What a chat template takes away at one end of a content.
enum class Trim { kNone, kNewlines, kAll };

// What a chat template does around the content of a message.
struct Turn {
  std::string before;  // between the content of the message before it, or the beginning, and its own
  Trim left, right;
};

// A chat template taken apart into the fixed texts between the contents of messages.
struct ChatDescription {
  std::optional<Turn> system;             // which begins a conversation; none if the template takes none
  Turn user;                              // a user's that begins one
  std::optional<Turn> user_after_system;  // as `system`
  Turn user_after_answer, earlier_answer, answer;
  std::string generation_prompt;     // behind the last user's content, where an answer is to begin
  std::string end;                   // behind the last answer's content
  std::vector<std::string> special;  // the special tokens, which no message may hold
  std::vector<int64_t> end_tokens;   // the ids of those that end an answer
  std::vector<std::string> refused;  // what the template takes for more than text
};

struct TextsDescription {
  std::optional<PromptDescription> prompt;
  std::optional<ChatDescription> chat;
  std::optional<std::string> no_chat;  // why there is none
};

// Throws Error, naming the field, if one is missing, unknown, of the wrong type, or contradicts the rest.
TextsDescription parse_texts(const Json& json);

}  // namespace mobizo::trainer
