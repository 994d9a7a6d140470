// Conversations in tokens, by the chat template that a program carries in pieces. mobizo_kernels/data/chat.py is the twin in
// Python, which renders the template itself.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../program/description.h"
#include "../tokenizer/tokenizer.h"

namespace mobizo::trainer {

struct Message {
  std::string role, content;  // "system" at the beginning or not at all, then "user" and "assistant" in turn
  bool operator==(const Message& other) const { return role == other.role && content == other.content; }
  bool operator<(const Message& other) const { return role != other.role ? role < other.role : content < other.content; }
};

// An encoded example: a prompt and its answer.
struct Row {
  std::vector<int64_t> tokens;
  int64_t label;    // -1 if there is none
  int64_t targets;  // how many tokens at the end are the answer
};

// The text of a conversation. `begin`: it ends with a user's message, whose answer is to begin; else it ends with an answer.
std::string rendered(const ChatDescription& chat, const std::vector<Message>& messages, bool begin);

// What of an answer can stand in a conversation: what follows the last text that no message may hold, such as the end of a
// thought.
std::string kept(const ChatDescription& chat, const std::string& answer);

class ChatEncoder {
 public:
  // Both have to outlive it. Throws Error if the program has no chat template.
  ChatEncoder(const Description& description, const Tokenizer& tokenizer);

  // What was said, ending with the user's turn, and the beginning of an answer. Throws Error if the roles are others, if a
  // message is empty or no UTF-8, or holds a special token, or what the template takes for more than text.
  std::vector<int64_t> prompt(const std::vector<Message>& messages) const;
  // What was said up to the last message, an answer, and the answer with the token that ends it: the last `targets` tokens.
  // `where` names the row in errors.
  Row row(const std::vector<Message>& messages, int64_t max_length, const std::string& where) const;
  void check(const std::vector<Message>& messages, const std::string& where) const;
  bool ends(int64_t token) const;

 private:
  const ChatDescription& chat_;
  const Tokenizer& tokenizer_;
};

}  // namespace mobizo::trainer
