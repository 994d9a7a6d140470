// Byte-pair encoding: "model" of tokenizer.json. A word begins as its characters; the pair of neighbours of the lowest rank
// becomes one token, until no pair has a rank.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "../files/json.h"

namespace mobizo::trainer {

class Bpe {
 public:
  explicit Bpe(const Json& model);
  Bpe(Bpe&&) = default;  // no copies: the tables point into tokens_

  // What one call of encode() after the other can use again. One thread at a time.
  struct Work;

  void encode(std::string_view word, Work& work, std::vector<int64_t>& out) const;

  std::optional<int64_t> id(std::string_view token) const;
  const std::string* token(int64_t id) const;  // nullptr if there is none
  size_t size() const { return ids_.size(); }

 private:
  struct Merge {
    uint64_t pair;
    uint32_t rank, id;
  };
  void read_vocabulary(const Json& vocabulary);
  void read_merges(const Json& merges);
  const Merge* merge_of(uint32_t left, uint32_t right) const;
  size_t slot_of(uint64_t pair) const;
  void begin(std::string_view word, std::vector<uint32_t>& symbols) const;
  void merge_short(std::vector<uint32_t>& symbols) const;
  void merge_long(Work& work) const;

  std::vector<std::string> tokens_;  // in the order of the file
  std::unordered_map<std::string_view, uint32_t> ids_;
  std::unordered_map<uint32_t, const std::string*> by_id_;
  std::vector<Merge> merges_;          // a hash table; its size is a power of two
  std::vector<int64_t> characters_;    // ids of the first code points, -1 for none
  std::vector<uint32_t> byte_tokens_;  // <0x00> to <0xFF>, kNone for those that are missing
  std::string unk_token_;
  bool has_unk_ = false, fuse_unk_ = false, byte_fallback_ = false, ignore_merges_ = false;
};

struct Bpe::Work {
  struct Symbol {
    uint32_t id;
    int32_t previous, next;
    bool alive;
  };
  struct Candidate {
    uint32_t rank, at, id;
  };
  std::vector<uint32_t> symbols;
  std::vector<Symbol> chain;
  std::vector<Candidate> queue;
};

}  // namespace mobizo::trainer
