#include "added_tokens.h"

#include <algorithm>

#include "parts.h"
#include "unicode.h"

namespace mobizo::trainer {
namespace {

size_t spaces_begin_before(std::string_view text, size_t end) {
  while (end > 0) {
    const CodePoint code = code_point_before(text, end);
    if (!is_white_space(code.value)) break;
    end -= code.length;
  }
  return end;
}

size_t spaces_end_after(std::string_view text, size_t begin) {
  while (begin < text.size()) {
    const CodePoint code = code_point_at(text, begin);
    if (!is_white_space(code.value)) break;
    begin += code.length;
  }
  return begin;
}

}  // namespace

void StringSet::insert(std::string_view text, int64_t id) {
  size_t node = 0;
  for (const char c : text) {
    const auto [found, fresh] = nodes_[node].next.emplace(c, nodes_.size());
    node = found->second;
    if (fresh) nodes_.emplace_back();
  }
  if (nodes_[node].id < 0) nodes_[node].id = id;
  begins_[static_cast<uint8_t>(text[0])] = true;
}

std::optional<StringSet::Found> StringSet::find(std::string_view text, size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!begins_[static_cast<uint8_t>(text[begin])]) continue;
    std::optional<Found> longest;
    size_t node = 0;
    for (size_t at = begin; at < text.size(); ++at) {
      const auto next = nodes_[node].next.find(text[at]);
      if (next == nodes_[node].next.end()) break;
      node = next->second;
      if (nodes_[node].id >= 0) longest = {begin, at + 1, nodes_[node].id};
    }
    if (longest) return longest;
  }
  return std::nullopt;
}

// A token that the model has keeps its id; others are numbered behind the model's, in the order of the file.
AddedTokens::AddedTokens(const Json& list, const Bpe& model, const Normalizer& normalizer) {
  struct Entry {
    const Json* json;
    int64_t id;
  };
  std::vector<Entry> special, others;
  int64_t next = static_cast<int64_t>(model.size());
  const Json::Array& entries = *blaming("added_tokens", [&] { return &list.as_array(); });
  for (size_t i = 0; i < entries.size(); ++i) {
    const Json& json = entries[i];
    blaming(message("added_tokens[", i, ']'), [&] {
      const std::string& content = json["content"].as_string();
      const bool is_special = json["special"].as_bool();
      const Flags flags{json["single_word"].as_bool(), json["lstrip"].as_bool(), json["rstrip"].as_bool()};
      static_cast<void>(json["normalized"].as_bool());
      const int64_t written = json["id"].as_int();
      if (content.empty()) return;
      const auto known = ids_.count(content) > 0 ? std::optional<int64_t>(ids_[content]) : model.id(content);
      const int64_t id = known.value_or(next);
      if (written != id) fail("'", content, "' has the id ", written, ", expected ", id);
      next = std::max(next, id + 1);
      ids_[content] = id;
      tokens_[id] = content;
      flags_[id] = flags;
      if (is_special) special_.insert(content);
      (is_special ? special : others).push_back({&json, id});
    });
  }
  special.insert(special.end(), others.begin(), others.end());
  for (const Entry& entry : special) {
    const std::string& content = (*entry.json)["content"].as_string();
    if (!(*entry.json)["normalized"].as_bool()) {
      raw_.insert(content, entry.id);
      continue;
    }
    std::string text = content;
    bool at_start = true;
    normalizer.apply(text, at_start);
    if (text.empty()) fail("nothing is left of '", content, "' when it is normalized");
    normalized_.insert(text, entry.id);
    tokens_[entry.id] = text;
  }
}

void AddedTokens::split(std::string_view text, bool normalized, std::vector<Part>& parts) const {
  const StringSet& set = normalized ? normalized_ : raw_;
  size_t done = 0;
  size_t from = 0;
  while (const auto found = set.find(text, from)) {
    from = found->end;
    size_t begin = found->begin, end = found->end;
    const Flags& flags = flags_.at(found->id);
    if (flags.single_word) {
      const bool word_before = begin > 0 && is_word(code_point_before(text, begin).value);
      const bool word_after = end < text.size() && is_word(code_point_at(text, end).value);
      if (word_before || word_after) continue;
    }
    if (flags.lstrip) begin = std::max(spaces_begin_before(text, begin), done);
    if (flags.rstrip) end = spaces_end_after(text, end);
    if (done < begin) parts.push_back({done, begin, -1});
    parts.push_back({begin, end, found->id});
    done = end;
  }
  if (done < text.size()) parts.push_back({done, text.size(), -1});
}

std::optional<int64_t> AddedTokens::id(std::string_view token) const {
  const auto found = ids_.find(std::string(token));
  return found == ids_.end() ? std::nullopt : std::optional<int64_t>(found->second);
}

const std::string* AddedTokens::token(int64_t id) const {
  const auto found = tokens_.find(id);
  return found == tokens_.end() ? nullptr : &found->second;
}

}  // namespace mobizo::trainer
