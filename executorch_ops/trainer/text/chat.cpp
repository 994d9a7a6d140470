#include "chat.h"

#include <algorithm>

#include "../files/errors.h"
#include "../files/utf8.h"
#include "strings.h"

namespace mobizo::trainer {
namespace {

const ChatDescription& chat_of(const Description& description) {
  if (!description.texts)
    fail("the program takes no texts: it was exported without a tokenizer, or by an earlier version of mobizo");
  if (!description.texts->chat) fail("the program takes no conversations: ", *description.texts->no_chat);
  return *description.texts->chat;
}

// Throws Error unless the roles are those of a conversation that ends with a question.
void check_roles(const std::vector<Message>& messages) {
  const size_t first = !messages.empty() && messages[0].role == "system" ? 1 : 0;
  for (size_t i = first; i < messages.size(); ++i) {
    const char* expected = (i - first) % 2 == 0 ? "user" : "assistant";
    if (messages[i].role != expected)
      fail("data: the prompt has the role ", quoted(messages[i].role), " in message ", i + 1, ", expected ", quoted(expected));
  }
  if (messages.size() == first || messages.back().role != "user") fail("data: the prompt ends without a question of the user");
}

std::string_view trimmed(std::string_view text, Trim left, Trim right) {
  if (left == Trim::kAll) text = stripped_left(text);
  if (left == Trim::kNewlines) text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
  if (right == Trim::kAll) text = stripped_right(text);
  if (right == Trim::kNewlines) text = text.substr(0, text.find_last_not_of('\n') + 1);
  return text;
}

const Turn& turn_of(const ChatDescription& chat, const std::string& role, const std::string& before, bool last) {
  if (role == "assistant") return last ? chat.answer : chat.earlier_answer;
  if (role != "system" && before == "assistant") return chat.user_after_answer;
  if (role != "system" && before.empty()) return chat.user;
  const std::optional<Turn>& turn = role == "system" ? chat.system : chat.user_after_system;
  if (!turn) fail("the chat template takes no system's message");
  return *turn;
}

}  // namespace

std::string rendered(const ChatDescription& chat, const std::vector<Message>& messages, bool begin) {
  std::string text, before;
  for (size_t i = 0; i < messages.size(); ++i) {
    const Turn& turn = turn_of(chat, messages[i].role, before, i + 1 == messages.size());
    text += turn.before;
    text += trimmed(messages[i].content, turn.left, turn.right);
    before = messages[i].role;
  }
  return text + (begin ? chat.generation_prompt : chat.end);
}

std::string kept(const ChatDescription& chat, const std::string& answer) {
  size_t from = 0;
  for (const auto* texts : {&chat.special, &chat.refused})
    for (const std::string& text : *texts) {
      const size_t at = answer.rfind(text);
      if (at != std::string::npos) from = std::max(from, at + text.size());
    }
  return answer.substr(from);
}

ChatEncoder::ChatEncoder(const Description& description, const Tokenizer& tokenizer)
    : chat_(chat_of(description)), tokenizer_(tokenizer) {}

std::vector<int64_t> ChatEncoder::prompt(const std::vector<Message>& messages) const {
  check_roles(messages);
  for (const Message& message : messages) {
    const size_t valid = utf8_valid_bytes(message.content);
    if (valid < message.content.size())
      fail("data: the prompt is not UTF-8 at byte ", valid, " of a message of ", message.role);
  }
  check(messages, "the prompt");
  for (const Message& message : messages)
    if (stripped(message.content).empty()) fail("data: the prompt has nothing to read in a message of ", message.role);
  return tokenizer_.encode(blaming("data: the prompt", [&] { return rendered(chat_, messages, true); }), false);
}

Row ChatEncoder::row(const std::vector<Message>& messages, int64_t max_length, const std::string& where) const {
  const std::vector<Message> asked(messages.begin(), messages.end() - 1);
  const auto text_of = [&](const std::vector<Message>& said, bool begin) {
    return blaming("data: " + where, [&] { return rendered(chat_, said, begin); });
  };
  const std::string prompt = text_of(asked, true), whole = text_of(messages, false);
  const std::vector<int64_t> before = tokenizer_.encode(prompt, false);
  std::vector<int64_t> tokens = tokenizer_.encode(whole, false);
  if (whole.compare(0, prompt.size(), prompt) != 0 || tokens.size() < before.size() ||
      !std::equal(before.begin(), before.end(), tokens.begin()))
    fail("data: ", where, ": the chat template of the model begins a conversation otherwise once the answer is there, so the ",
         "answer's tokens cannot be told");
  const auto first = tokens.begin() + static_cast<std::ptrdiff_t>(before.size());
  const auto end = std::find_if(first, tokens.end(), [&](int64_t token) { return ends(token); });
  if (end == tokens.end()) fail("model: its chat template ends an answer with no special token");
  if (end == first) fail("data: ", where, ": the chat template of the model leaves nothing of an answer");
  const auto length = static_cast<int64_t>(end - tokens.begin()) + 1, asks = static_cast<int64_t>(before.size());
  if (length > max_length)
    fail("data: ", where, " has ", length, " tokens, ", asks, " of its prompt and ", length - asks, " of its answer, and ",
         max_length, " fit (--max-length)");
  tokens.resize(static_cast<size_t>(length));
  return {std::move(tokens), -1, length - asks};
}

void ChatEncoder::check(const std::vector<Message>& messages, const std::string& where) const {
  for (const std::string& token : chat_.special)
    for (const Message& message : messages)
      if (message.content.find(token) != std::string::npos)
        fail("data: ", where, " holds the special token ", quoted(token), " in ", shortened(message.content));
  for (const std::string& text : chat_.refused)
    for (const Message& message : messages)
      if (message.content.find(text) != std::string::npos)
        fail("data: ", where, " holds ", quoted(text), ", which the chat template takes for more than text");
}

bool ChatEncoder::ends(int64_t token) const {
  return std::find(chat_.end_tokens.begin(), chat_.end_tokens.end(), token) != chat_.end_tokens.end();
}

}  // namespace mobizo::trainer
