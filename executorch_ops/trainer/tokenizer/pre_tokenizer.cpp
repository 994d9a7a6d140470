#include "pre_tokenizer.h"

#include <memory>
#include <utility>

#include "byte_level.h"
#include "parts.h"
#include "unicode.h"

namespace mobizo::trainer {
namespace {

using Step = std::function<void(Pieces&)>;

constexpr char kGpt2[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Cuts every piece where `find(text, matches)` finds something.
template <typename Find>
void cut_all(Pieces& pieces, Find find, bool invert, Behavior behavior) {
  std::vector<Piece> out;
  std::vector<Match> matches;
  for (const Piece& piece : pieces.pieces) {
    matches.clear();
    find(pieces.view(piece), matches);
    cut(piece, matches, invert, behavior, out);
  }
  pieces.pieces = std::move(out);
}

// Writes every piece anew: `write(piece, out)` appends it.
template <typename Write>
void rewrite_all(Pieces& pieces, Write write) {
  std::string text;
  text.reserve(pieces.text.size() + pieces.text.size() / 2);
  for (Piece& piece : pieces.pieces) {
    const size_t begin = text.size();
    write(piece, text);
    piece.begin = begin;
    piece.end = text.size();
    check_growth(pieces.text.size(), text.size());
  }
  pieces.text = std::move(text);
}

template <bool is_member(uint32_t)>
void find_characters(std::string_view text, std::vector<Match>& matches) {
  for (size_t at = 0; at < text.size();) {
    const CodePoint code = code_point_at(text, at);
    if (is_member(code.value)) matches.push_back({at, at + code.length});
    at += code.length;
  }
}

Behavior behavior_of(const Json& json) {
  constexpr std::pair<const char*, Behavior> kBehaviors[] = {{"Removed", Behavior::kRemoved},
                                                             {"Isolated", Behavior::kIsolated},
                                                             {"Contiguous", Behavior::kContiguous},
                                                             {"MergedWithPrevious", Behavior::kMergedWithPrevious},
                                                             {"MergedWithNext", Behavior::kMergedWithNext}};
  for (const auto& [name, behavior] : kBehaviors)
    if (json.as_string() == name) return behavior;
  fail("the behavior '", json.as_string(),
       "' is not known, expected Removed, Isolated, Contiguous, MergedWithPrevious or MergedWithNext");
}

Step byte_level_step(const Json& json) {
  const bool add_prefix_space = flag(json, "add_prefix_space", true);
  const auto regex = flag(json, "use_regex", true) ? std::make_shared<Regex>(kGpt2) : nullptr;
  return [=](Pieces& pieces) {
    if (add_prefix_space)
      rewrite_all(pieces, [&](const Piece& piece, std::string& out) {
        if (pieces.text[piece.begin] != ' ') out += ' ';
        out += pieces.view(piece);
      });
    if (regex)
      cut_all(
          pieces, [&](std::string_view text, std::vector<Match>& matches) { regex->find_all(text, matches); }, false,
          Behavior::kIsolated);
    rewrite_all(pieces, [&](const Piece& piece, std::string& out) { append_byte_level(pieces.view(piece), out); });
  };
}

Step split_step(const Json& json) {
  const auto pattern = std::make_shared<Pattern>(json["pattern"]);
  const Behavior behavior = behavior_of(json["behavior"]);
  const bool invert = json["invert"].as_bool();
  return [=](Pieces& pieces) {
    cut_all(
        pieces, [&](std::string_view text, std::vector<Match>& matches) { pattern->find_all(text, matches); }, invert,
        behavior);
  };
}

// Each space becomes the replacement, and a piece may get one in front: every piece, the first of the text, or none.
Step metaspace_step(const Json& json) {
  const std::string replacement = one_character(json, "replacement");
  const Json* named = find_part(json, "prepend_scheme");
  const std::string scheme = named != nullptr                       ? named->as_string()
                             : flag(json, "add_prefix_space", true) ? std::string("always")
                                                                    : std::string("never");
  if (scheme != "always" && scheme != "first" && scheme != "never")
    fail("'prepend_scheme' must be always, first or never, got '", scheme, "'");
  const bool split = flag(json, "split", true);
  return [=](Pieces& pieces) {
    rewrite_all(pieces, [&](const Piece& piece, std::string& out) {
      const std::string_view text = pieces.view(piece);
      const bool has_one = text[0] == ' ' || text.substr(0, replacement.size()) == replacement;
      if (!has_one && (scheme == "always" || (scheme == "first" && piece.at_start))) out += replacement;
      for (const char c : text) {
        if (c == ' ') {
          out += replacement;
        } else {
          out += c;
        }
      }
    });
    if (!split) return;
    const auto find = [&](std::string_view text, std::vector<Match>& matches) {
      for (size_t at = text.find(replacement); at != std::string_view::npos; at = text.find(replacement, at + 1))
        matches.push_back({at, at + replacement.size()});
    };
    cut_all(pieces, find, false, Behavior::kMergedWithNext);
  };
}

// Words, and what is neither word nor white space.
void find_words(std::string_view text, std::vector<Match>& matches) {
  int last = 0;  // 1 in a word, 2 in what is none, 0 in white space
  for (size_t at = 0; at < text.size();) {
    const CodePoint code = code_point_at(text, at);
    const int now = is_word(code.value) ? 1 : is_white_space(code.value) ? 0 : 2;
    if (now != 0 && now == last) {
      matches.back().end = at + code.length;
    } else if (now != 0) {
      matches.push_back({at, at + code.length});
    }
    last = now;
    at += code.length;
  }
}

Step step_of(const Json& json) {
  const std::string& kind = json["type"].as_string();
  if (kind == "ByteLevel") return byte_level_step(json);
  if (kind == "Split") return split_step(json);
  if (kind == "Metaspace") return metaspace_step(json);
  if (kind == "Digits") {
    const Behavior behavior = flag(json, "individual_digits", false) ? Behavior::kIsolated : Behavior::kContiguous;
    return [=](Pieces& pieces) { cut_all(pieces, find_characters<is_numeric>, false, behavior); };
  }
  if (kind == "Punctuation") {
    const Json* behavior = find_part(json, "behavior");
    return [=, how = behavior == nullptr ? Behavior::kIsolated : behavior_of(*behavior)](Pieces& pieces) {
      cut_all(pieces, find_characters<is_punctuation>, false, how);
    };
  }
  if (kind == "WhitespaceSplit")
    return [](Pieces& pieces) { cut_all(pieces, find_characters<is_white_space>, false, Behavior::kRemoved); };
  if (kind == "Whitespace") return [](Pieces& pieces) { cut_all(pieces, find_words, true, Behavior::kRemoved); };
  unknown_kind(kind, "ByteLevel, Split, Metaspace, Digits, Punctuation, Whitespace, WhitespaceSplit or Sequence");
}

}  // namespace

// What is first in a text is not known here of pieces that may have been cut from characters that were put in.
PreTokenizer::PreTokenizer(const Json& json, bool inserts) {
  for_each_part(json, "pretokenizers", [&](const Json& part) {
    const std::string& kind = part["type"].as_string();
    const Json* scheme = find_part(part, "prepend_scheme");
    if (kind == "Metaspace" && scheme != nullptr && *scheme == Json("first") && inserts && !steps_.empty())
      fail("the 'prepend_scheme' first is not known behind parts that put in characters");
    steps_.push_back(step_of(part));
    inserts = inserts || kind == "Metaspace" || (kind == "ByteLevel" && flag(part, "add_prefix_space", true));
  });
}

}  // namespace mobizo::trainer
