// A tokenizer of Hugging Face's tokenizers, as its tokenizer.json describes it: the same ids and the same texts.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "added_tokens.h"
#include "bpe.h"
#include "decoder.h"
#include "normalizer.h"
#include "pre_tokenizer.h"
#include "template.h"

namespace mobizo::trainer {

// Any number of threads may use one at once.
class Tokenizer {
 public:
  // Reads tokenizer.json. Throws Error, naming the file and the part, for a damaged file and for a part of a kind that is not
  // known. "truncation" and "padding" are left to whoever makes rows.
  static Tokenizer load(const std::string& path);
  explicit Tokenizer(const Json& json);

  // The ids of a text in UTF-8; with those that the template puts around it, if `add_special`.
  std::vector<int64_t> encode(std::string_view text, bool add_special) const;
  // The text of ids, of which those that the vocabulary lacks are left out, and so are special tokens if `skip_special`.
  std::string decode(const std::vector<int64_t>& ids, bool skip_special) const;

  int64_t vocabulary_size() const;  // added tokens among it
  std::optional<int64_t> id(std::string_view token) const;
  const std::string* token(int64_t id) const;  // nullptr if there is none

 private:
  friend class StreamDecoder;
  void encode_between(std::string text, bool at_start, Bpe::Work& work, std::vector<int64_t>& ids) const;
  const std::string* token_to_decode(int64_t id, bool skip_special) const;

  Bpe model_;
  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  AddedTokens added_;
  Template template_;
  Decoder decoder_;
  int64_t size_ = 0;
};

// Decodes ids that come one by one. Nothing is cut in the middle of a character; what all calls return, one after the other, is
// what decode() returns for all ids. The tokenizer has to outlive it.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special);

  std::string push(int64_t id);
  std::string finish();  // what was held back; the decoder is used up

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  DecodedText text_;
};

}  // namespace mobizo::trainer
