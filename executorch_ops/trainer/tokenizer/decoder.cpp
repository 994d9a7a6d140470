#include "decoder.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "byte_level.h"
#include "parts.h"

namespace mobizo::trainer {
namespace {

// Puts a space between tokens.
class Join : public DecoderStage {
 public:
  void push(std::string_view text, bool ends_token) override {
    if (begins_ && !first_) next->push(" ", false);
    next->push(text, false);
    first_ = false;
    begins_ = ends_token;
  }

 private:
  bool first_ = true, begins_ = true;
};

// All tokens become one.
class Fuse : public DecoderStage {
 public:
  void push(std::string_view text, bool) override { next->push(text, false); }
  void finish() override {
    next->push("", true);
    next->finish();
  }
};

// The characters of the byte-level alphabet become bytes, and those UTF-8. A token with another character is taken as it is.
class ByteLevel : public DecoderStage {
 public:
  void push(std::string_view text, bool ends_token) override {
    token_ += text;
    if (!ends_token) return;
    if (!append_bytes_of(token_, bytes_)) bytes_ += token_;
    token_.clear();
    give(false);
  }
  void finish() override {
    give(true);
    next->push("", true);
    next->finish();
  }

 private:
  void give(bool final) {
    std::string text;
    bytes_.erase(0, append_utf8_lossy(bytes_, final, text));
    if (!text.empty()) next->push(text, false);
  }
  std::string token_, bytes_;
};

// Tokens like <0x61> become bytes. Those in a row become one token if they are UTF-8, and a replacement character each if not.
class ByteFallback : public DecoderStage {
 public:
  void push(std::string_view text, bool ends_token) override {
    token_ += text;
    if (token_.size() > kLength && !ends_token) return pass(false);
    if (!ends_token) return;
    const int byte = inside_ ? -1 : byte_of(token_);
    if (byte < 0) return pass(true);
    bytes_ += static_cast<char>(byte);
    token_.clear();
  }
  void finish() override {
    give_bytes();
    next->finish();
  }

 private:
  static constexpr size_t kLength = 6;

  static int byte_of(const std::string& token) {
    if (token.size() != kLength || token.compare(0, 3, "<0x") != 0 || token[5] != '>') return -1;
    const char* digits = token.data() + (token[3] == '+' ? 4 : 3);  // Rust takes a sign
    uint8_t byte = 0;
    const auto result = std::from_chars(digits, token.data() + 5, byte, 16);
    return result.ec == std::errc() && result.ptr == token.data() + 5 ? byte : -1;
  }

  // Gives what there is of a token that is no byte.
  void pass(bool ends_token) {
    if (!inside_) give_bytes();
    next->push(token_, ends_token);
    token_.clear();
    inside_ = !ends_token;
  }

  void give_bytes() {
    if (bytes_.empty()) return;
    if (utf8_valid_bytes(bytes_) == bytes_.size()) {
      next->push(bytes_, true);
    } else {
      for (size_t i = 0; i < bytes_.size(); ++i) next->push(kReplacementCharacter, true);
    }
    bytes_.clear();
  }

  std::string token_, bytes_;
  bool inside_ = false;  // a token of which a part was given
};

// Of each token. A string is looked for in fragments, an expression in whole tokens.
class Replace : public DecoderStage {
 public:
  explicit Replace(std::shared_ptr<const Replacement> replacement) : replacement_(std::move(replacement)) {}

  void push(std::string_view text, bool ends_token) override {
    rest_ += text;
    const Pattern& pattern = replacement_->pattern();
    if (pattern.is_regex() && !ends_token) return;
    std::vector<Match> matches;
    pattern.find_all(rest_, matches);
    const size_t done = matches.empty() ? 0 : matches.back().end;
    const size_t kept = ends_token ? 0 : begun(std::string_view(rest_).substr(done));
    const std::string_view certain = std::string_view(rest_).substr(0, rest_.size() - kept);
    next->push(replacement_->apply(certain, matches), ends_token);
    rest_.erase(0, rest_.size() - kept);
  }

 private:
  // The most bytes at the end of `text` with which the pattern begins.
  size_t begun(std::string_view text) const {
    const std::string_view pattern = replacement_->pattern().text();
    size_t bytes = std::min(text.size(), pattern.size() - 1);
    while (bytes > 0 && text.substr(text.size() - bytes) != pattern.substr(0, bytes)) --bytes;
    return bytes;
  }

  std::shared_ptr<const Replacement> replacement_;
  std::string rest_;
};

// Takes up to so many of a character from the start and from the end of each token.
class Strip : public DecoderStage {
 public:
  Strip(std::string character, int64_t start, int64_t stop) : character_(std::move(character)), start_(start), stop_(stop) {}

  void push(std::string_view text, bool ends_token) override {
    while (stripping_ && taken_ < start_ && text.substr(0, character_.size()) == character_) {
      text.remove_prefix(character_.size());
      ++taken_;
    }
    if (!text.empty()) stripping_ = false;
    // What may be at the end waits: at most `stop_` of the character.
    std::string waiting;
    while (static_cast<int64_t>(waiting.size() / character_.size()) < stop_ && text.size() >= character_.size() &&
           text.substr(text.size() - character_.size()) == character_) {
      text.remove_suffix(character_.size());
      waiting += character_;
    }
    if (text.empty()) {
      waiting_ += waiting;
      const size_t most = static_cast<size_t>(stop_) * character_.size();
      if (waiting_.size() > most) {
        next->push(std::string_view(waiting_).substr(most), false);
        waiting_.resize(most);
      }
    } else {
      if (!waiting_.empty()) next->push(waiting_, false);
      next->push(text, false);
      waiting_ = waiting;
    }
    if (!ends_token) return;
    next->push("", true);
    waiting_.clear();
    taken_ = 0;
    stripping_ = true;
  }

 private:
  std::string character_, waiting_;
  int64_t start_, stop_, taken_ = 0;
  bool stripping_ = true;
};

// The replacement becomes a space; in the first token, nothing if a space was put in front of texts.
class Metaspace : public DecoderStage {
 public:
  Metaspace(std::string replacement, bool prepended) : replacement_(std::move(replacement)), first_(prepended) {}

  void push(std::string_view text, bool ends_token) override {
    std::string out;
    for (size_t at = 0; at < text.size();) {
      const size_t length = code_point_at(text, at).length;
      const std::string_view character = text.substr(at, length);
      if (character != replacement_) {
        out += character;
      } else if (!first_) {
        out += ' ';
      }
      at += length;
    }
    next->push(out, ends_token);
    if (ends_token) first_ = false;
  }

 private:
  std::string replacement_;
  bool first_;
};

class Output : public DecoderStage {
 public:
  void push(std::string_view text, bool) override { out += text; }
  void finish() override {}

  std::string out;
};

template <typename Stage>
std::function<std::unique_ptr<DecoderStage>()> maker() {
  return [] { return std::make_unique<Stage>(); };
}

int64_t count(const Json& json, std::string_view name) {
  const int64_t value = json[name].as_int();
  if (value < 0 || value > 1 << 20) fail("'", name, "' must be from 0 to ", 1 << 20, ", got ", value);
  return value;
}

std::function<std::unique_ptr<DecoderStage>()> maker_of(const Json& json) {
  const std::string& kind = json["type"].as_string();
  if (kind == "ByteLevel") return maker<ByteLevel>();
  if (kind == "ByteFallback") return maker<ByteFallback>();
  if (kind == "Fuse") return maker<Fuse>();
  if (kind == "Replace")
    return [replacement = std::make_shared<const Replacement>(json)] { return std::make_unique<Replace>(replacement); };
  if (kind == "Strip")
    return [character = one_character(json, "content"), start = count(json, "start"), stop = count(json, "stop")] {
      return std::make_unique<Strip>(character, start, stop);
    };
  if (kind == "Metaspace") {
    const Json* scheme = find_part(json, "prepend_scheme");
    const bool prepended = scheme == nullptr ? flag(json, "add_prefix_space", true) : scheme->as_string() != "never";
    return [replacement = one_character(json, "replacement"), prepended] {
      return std::make_unique<Metaspace>(replacement, prepended);
    };
  }
  unknown_kind(kind, "ByteLevel, ByteFallback, Fuse, Replace, Strip, Metaspace or Sequence");
}

}  // namespace

Decoder::Decoder() : make_{maker<Join>()} {}

Decoder::Decoder(const Json& json) {
  for_each_part(json, "decoders", [&](const Json& part) { make_.push_back(maker_of(part)); });
}

std::vector<std::unique_ptr<DecoderStage>> Decoder::stages() const {
  std::vector<std::unique_ptr<DecoderStage>> stages;
  for (const auto& make : make_) stages.push_back(make());
  return stages;
}

struct DecodedText::Chain {
  std::vector<std::unique_ptr<DecoderStage>> stages;
  Output output;

  DecoderStage& first() { return stages.empty() ? output : *stages.front(); }
};

DecodedText::DecodedText(const Decoder& decoder) : chain_(std::make_unique<Chain>()) {
  chain_->stages = decoder.stages();
  for (size_t i = 0; i < chain_->stages.size(); ++i)
    chain_->stages[i]->next = i + 1 < chain_->stages.size() ? chain_->stages[i + 1].get() : &chain_->output;
}
DecodedText::~DecodedText() = default;
DecodedText::DecodedText(DecodedText&&) noexcept = default;

std::string DecodedText::push(std::string_view token) {
  chain_->first().push(token, true);
  return std::exchange(chain_->output.out, {});
}

std::string DecodedText::finish() {
  chain_->first().finish();
  return std::exchange(chain_->output.out, {});
}

}  // namespace mobizo::trainer
