// From tokens back to a text: "decoder" of tokenizer.json. A decoder is a row of stages, each of which takes tokens and gives
// tokens, and all of which give what is certain as soon as it is.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "../files/json.h"

namespace mobizo::trainer {

// A token may come in fragments, the last of which ends it. No fragment cuts a character.
class DecoderStage {
 public:
  virtual ~DecoderStage() = default;
  virtual void push(std::string_view text, bool ends_token) = 0;
  virtual void finish() { next->finish(); }

  DecoderStage* next = nullptr;
};

class Decoder {
 public:
  Decoder();  // puts a space between tokens
  explicit Decoder(const Json& json);

  std::vector<std::unique_ptr<DecoderStage>> stages() const;

 private:
  std::vector<std::function<std::unique_ptr<DecoderStage>()>> make_;
};

// The text of tokens that come one by one. What all calls return, one after the other, is the text of all tokens.
class DecodedText {
 public:
  explicit DecodedText(const Decoder& decoder);
  ~DecodedText();
  DecodedText(DecodedText&&) noexcept;

  std::string push(std::string_view token);
  std::string finish();

 private:
  struct Chain;
  std::unique_ptr<Chain> chain_;
};

}  // namespace mobizo::trainer
