#include "texts.h"

#include <algorithm>
#include <set>

#include "../files/errors.h"
#include "members.h"

namespace mobizo::trainer {
namespace {

std::vector<std::string> strings(Members& members, const std::string& name) {
  return members.get(name, [](const Json& value) {
    std::vector<std::string> found;
    for (const Json& entry : value.as_array()) found.push_back(entry.as_string());
    return found;
  });
}

template <typename Parse>
auto or_null(Members& members, const std::string& name, Parse parse) {
  return members.get(name, [&](const Json& value) {
    using Value = decltype(parse(value));
    return value.is_null() ? std::optional<Value>() : std::optional<Value>(parse(value));
  });
}

void require_texts(const char* name, const std::vector<std::string>& texts) {
  if (std::find(texts.begin(), texts.end(), "") != texts.end()) fail(name, " must not be empty texts");
}

PromptDescription parse_prompt(const Json& json) {
  Members members(json);
  PromptDescription prompt{members.text("template"), strings(members, "labels"), strings(members, "words")};
  members.end();
  if (prompt.labels.size() != prompt.words.size())
    fail("expected a word for each of ", prompt.labels.size(), " labels, got ", prompt.words.size());
  if (std::set<std::string>(prompt.labels.begin(), prompt.labels.end()).size() < prompt.labels.size())
    fail("labels must be different");
  if (std::find(prompt.words.begin(), prompt.words.end(), "") != prompt.words.end()) fail("words must not be empty");
  return prompt;
}

Trim trim_of(const char* name, const std::string& text) {
  if (text == "none") return Trim::kNone;
  if (text == "newlines") return Trim::kNewlines;
  if (text == "all") return Trim::kAll;
  fail(name, " must be one of none, newlines, all, got '", text, "'");
}

Turn parse_turn(const Json& json) {
  Members members(json);
  const std::string before = members.text("before"), left = members.text("left"), right = members.text("right");
  members.end();
  const Trim at_left = trim_of("left", left);
  return {before, at_left, trim_of("right", right)};
}

ChatDescription parse_chat(const Json& json) {
  Members members(json);
  ChatDescription chat{};
  chat.system = or_null(members, "system", parse_turn);
  chat.user = members.get("user", parse_turn);
  chat.user_after_system = or_null(members, "user_after_system", parse_turn);
  chat.user_after_answer = members.get("user_after_answer", parse_turn);
  chat.earlier_answer = members.get("earlier_answer", parse_turn);
  chat.answer = members.get("answer", parse_turn);
  chat.generation_prompt = members.text("generation_prompt");
  chat.end = members.text("end");
  chat.special = strings(members, "special");
  chat.end_tokens = members.get("end_tokens", [](const Json& value) { return value.as_ints(); });
  chat.refused = strings(members, "refused");
  members.end();
  if (chat.system.has_value() != chat.user_after_system.has_value())
    fail("system and user_after_system must be both given, or both null");
  require_texts("special", chat.special);
  require_texts("refused", chat.refused);
  if (chat.end_tokens.empty()) fail("end_tokens must be at least 1");
  const int64_t least = *std::min_element(chat.end_tokens.begin(), chat.end_tokens.end());
  if (least < 0) fail("end_tokens must be from 0, got ", least);
  return chat;
}

}  // namespace

TextsDescription parse_texts(const Json& json) {
  Members members(json);
  TextsDescription texts{or_null(members, "prompt", parse_prompt), or_null(members, "chat", parse_chat),
                         or_null(members, "no_chat", [](const Json& value) { return value.as_string(); })};
  members.end();
  if (texts.chat.has_value() == texts.no_chat.has_value()) fail("expected one of chat and no_chat, and null for the other");
  return texts;
}

}  // namespace mobizo::trainer
