// tokenizer.json with what the rows need beside its ids: a fingerprint, and where in a text its tokens begin.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "../program/description.h"
#include "../tokenizer/tokenizer.h"

namespace mobizo::trainer {

class TokenizerFile {
 public:
  // Throws Error if it cannot be read, or has a part of an unknown kind.
  explicit TokenizerFile(const std::string& path);

  const Tokenizer& tokenizer() const { return tokenizer_; }
  // As mobizo_kernels/data/tokenizer_fingerprint.py computes it, if the file is as the library `tokenizers` writes it today.
  // What older files leave out of a BPE is filled in.
  const std::string& fingerprint() const { return fingerprint_; }
  // Throws Error unless the program was exported with this tokenizer.
  void check(const Description& description) const;

  struct Extent {
    size_t begin, end;  // in characters
  };
  // Where the tokens of a text begin and end, as the library tells offsets; nothing if the ids give back another text.
  std::optional<std::vector<Extent>> extents(const std::string& text) const;

 private:
  TokenizerFile(const std::string& path, Json json);

  std::string path_;
  Tokenizer tokenizer_;
  std::string fingerprint_;
  bool byte_level_ = false;     // its tokens are bytes, each as a character
  bool trims_offsets_ = false;  // spaces at the ends of a token are not of it
  bool keeps_first_ = false;    // but for the first token
};

}  // namespace mobizo::trainer
