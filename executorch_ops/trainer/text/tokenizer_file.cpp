#include "tokenizer_file.h"

#include <algorithm>
#include <functional>

#include "../files/blake2b.h"
#include "../files/errors.h"
#include "../files/file.h"
#include "../files/utf8.h"
#include "python_json.h"
#include "strings.h"

namespace mobizo::trainer {
namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81", kByteSpace = "\xC4\xA0";

// Calls `take` for a part and, in the place of a Sequence, for those that it lists.
void for_each(const Json* part, const char* members, const std::function<void(const Json&)>& take) {
  if (part == nullptr || part->is_null()) return;
  const Json* list = part->find(members);
  if (list == nullptr) return take(*part);
  for (const Json& inner : list->as_array()) for_each(&inner, members, take);
}

bool is_kind(const Json& part, const char* kind) { return part["type"].as_string() == kind; }

bool flag_of(const Json& part, const char* name, bool otherwise) {
  const Json* value = part.find(name);
  return value == nullptr || value->is_null() ? otherwise : value->as_bool();
}

// "a b" of an older file as ["a", "b"].
Json merges_of(const Json& merges) {
  Json::Array pairs;
  for (const Json& merge : merges.as_array()) {
    if (!merge.is_string()) {
      pairs.push_back(merge);
      continue;
    }
    const std::string& text = merge.as_string();
    const size_t space = text.find(' ');
    if (space == std::string::npos) return merges;
    pairs.emplace_back(Json::Array{text.substr(0, space), text.substr(space + 1)});
  }
  return pairs;
}

Json model_of(const Json& model) {
  const Json kDefaults[] = {nullptr, nullptr, nullptr, nullptr, false, false, false};
  constexpr const char* kNames[] = {
      "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges"};
  Json::Object filled;
  for (const auto& [name, value] : model.as_object()) filled.emplace_back(name, name == "merges" ? merges_of(value) : value);
  for (size_t i = 0; i < std::size(kNames); ++i)
    if (model.find(kNames[i]) == nullptr) filled.emplace_back(kNames[i], kDefaults[i]);
  return filled;
}

std::string fingerprint_of(const Json& json) {
  Json::Object definition;
  for (const auto& [name, value] : json.as_object())
    if (name != "padding" && name != "truncation") definition.emplace_back(name, name == "model" ? model_of(value) : value);
  definition.emplace_back("padding", nullptr);
  definition.emplace_back("truncation", nullptr);
  const std::string text = python_json(std::move(definition), {true, false, true});
  Blake2b hash;
  hash.update(text.data(), text.size());
  return hash.hex();
}

bool is_byte_token(std::string_view token) { return token.size() == 6 && token.substr(0, 3) == "<0x" && token.back() == '>'; }

// The spaces at one end of a token.
size_t spaces_at(std::string_view token, bool from_end) {
  size_t spaces = 0;
  while (!token.empty()) {
    const size_t length = from_end ? code_point_before(token, token.size()).length : code_point_at(token, 0).length;
    const std::string_view one = from_end ? token.substr(token.size() - length) : token.substr(0, length);
    if (one != kByteSpace && !is_python_space(code_point_at(one, 0).value)) break;
    ++spaces;
    token = from_end ? token.substr(0, token.size() - length) : token.substr(length);
  }
  return spaces;
}

}  // namespace

TokenizerFile::TokenizerFile(const std::string& path)
    : TokenizerFile(path, blaming(path, [&] { return parse_json(read_file(path)); })) {}

TokenizerFile::TokenizerFile(const std::string& path, Json json)
    : path_(path), tokenizer_(blaming(path, [&] { return Tokenizer(json); })), fingerprint_(fingerprint_of(json)) {
  blaming(path, [&] {
    for_each(json.find("decoder"), "decoders",
             [&](const Json& part) { byte_level_ = byte_level_ || is_kind(part, "ByteLevel"); });
    for_each(json.find("post_processor"), "processors", [&](const Json& part) {
      if (!is_kind(part, "ByteLevel") || !flag_of(part, "trim_offsets", true)) return;
      trims_offsets_ = true;
      keeps_first_ = flag_of(part, "add_prefix_space", true);
    });
  });
}

void TokenizerFile::check(const Description& description) const {
  if (!description.texts || !description.tokenizer)
    fail("the program takes no texts: it was exported without a tokenizer, or by an earlier version of mobizo");
  if (*description.tokenizer != fingerprint_)
    fail(path_, ": not the tokenizer of the program, whose fingerprint is ", *description.tokenizer, ", got ", fingerprint_,
         "; take the tokenizer.json that mobizo export --tokenizer writes");
}

std::optional<std::vector<TokenizerFile::Extent>> TokenizerFile::extents(const std::string& text) const {
  const std::vector<int64_t> ids = tokenizer_.encode(text, false);
  if (tokenizer_.decode(ids, true) != text) return std::nullopt;
  std::vector<size_t> ends;
  size_t total = 0;
  for (const int64_t id : ids) {
    const std::string& token = *tokenizer_.token(id);
    if (byte_level_) {
      total += characters(token);
    } else if (is_byte_token(token)) {
      ++total;
    } else {
      total += token.size();
      for (size_t at = token.find(kSpaceMark); at != std::string::npos; at = token.find(kSpaceMark, at + kSpaceMark.size()))
        total -= kSpaceMark.size() - 1;
    }
    ends.push_back(total);
  }
  if (total != text.size() && total != text.size() + 1) return std::nullopt;
  const size_t more = total - text.size();         // a space in front that is not in the text
  std::vector<size_t> before(text.size() + 1, 0);  // characters that end before a byte, or have begun there
  for (size_t i = 0; i < text.size(); ++i) before[i + 1] = before[i] + ((static_cast<uint8_t>(text[i]) & 0xC0) != 0x80);
  std::vector<Extent> found;
  size_t begin = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    const size_t from = begin - std::min(begin, more), to = ends[i] - std::min(ends[i], more);
    begin = ends[i];
    // A character of which a token has but a part is of it as a whole.
    const bool inside = from < text.size() && (static_cast<uint8_t>(text[from]) & 0xC0) == 0x80;
    Extent extent{before[from] - (inside ? 1 : 0), before[to]};
    if (trims_offsets_) {
      const std::string& token = *tokenizer_.token(ids[i]);
      size_t left = spaces_at(token, false);
      const size_t right = spaces_at(token, true);
      if (keeps_first_ && (i == 0 || extent.begin == 0)) left = 0;
      extent.begin = std::min(extent.begin + left, extent.end);
      if (extent.end >= right) extent.end = std::max(extent.end - right, extent.begin);
    }
    found.push_back(extent);
  }
  return found;
}

}  // namespace mobizo::trainer
