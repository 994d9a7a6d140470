#include "bpe.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "parts.h"

namespace mobizo::trainer {
namespace {

constexpr uint32_t kNone = 0xFFFFFFFF;
constexpr int64_t kMostId = 0x7FFFFFFF;
constexpr uint64_t kEmpty = ~uint64_t{0};
constexpr size_t kFirstCharacters = 0x800;  // all of a byte-level alphabet
constexpr size_t kShort = 24;               // up to so many symbols, looking at all pairs again is the fastest

uint64_t pair_of(uint32_t left, uint32_t right) { return uint64_t{left} << 32 | right; }

// What is no part of a byte-pair encoding that is known here.
void check_options(const Json& model) {
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const Json* value = find_part(model, name);
    if (value != nullptr && !value->as_string().empty()) fail("'", name, "' '", value->as_string(), "' is not known");
  }
  const Json* dropout = find_part(model, "dropout");
  if (dropout != nullptr && dropout->as_double() != 0) fail("'dropout' must be null, got ", dropout->dump());
}

// The tokens of a merge: a list of two, or one string with a space between them.
std::pair<std::string, std::string> parts_of(const Json& merge) {
  if (merge.is_string()) {
    const std::string& both = merge.as_string();
    const size_t space = both.find(' ');
    if (space == std::string::npos || both.find(' ', space + 1) != std::string::npos)
      fail("expected two tokens parted by a space, got '", both, "'");
    return {both.substr(0, space), both.substr(space + 1)};
  }
  const Json::Array& both = merge.as_array();
  if (both.size() != 2) fail("expected two tokens, got ", both.size());
  return {both[0].as_string(), both[1].as_string()};
}

}  // namespace

Bpe::Bpe(const Json& model) {
  const Json* kind = find_part(model, "type");
  if (kind != nullptr && kind->as_string() != "BPE") unknown_kind(kind->as_string(), "BPE");
  check_options(model);
  fuse_unk_ = flag(model, "fuse_unk", false);
  byte_fallback_ = flag(model, "byte_fallback", false);
  ignore_merges_ = flag(model, "ignore_merges", false);
  if (const Json* unk = find_part(model, "unk_token")) {
    has_unk_ = true;
    unk_token_ = unk->as_string();
  }
  blaming("vocab", [&] { read_vocabulary(model["vocab"]); });
  read_merges(model["merges"]);
  for (uint32_t byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", byte);
    byte_tokens_.push_back(static_cast<uint32_t>(id(name).value_or(kNone)));
  }
  for (uint32_t code = 0; code < kFirstCharacters; ++code) {
    std::string character;
    append_utf8(code, character);
    characters_.push_back(id(character).value_or(-1));
  }
}

void Bpe::read_vocabulary(const Json& vocabulary) {
  const Json::Object& members = vocabulary.as_object();
  tokens_.reserve(members.size());
  ids_.reserve(members.size());
  by_id_.reserve(members.size());
  for (const Json::Member& member : members) {
    const std::string& token = member.first;
    const int64_t id = blaming("'" + token + "'", [&] { return member.second.as_int(); });
    if (id < 0 || id >= kMostId) fail("the id of '", token, "' must be from 0 to ", kMostId - 1, ", got ", id);
    tokens_.push_back(token);
    ids_.emplace(tokens_.back(), static_cast<uint32_t>(id));
    if (!by_id_.emplace(static_cast<uint32_t>(id), &tokens_.back()).second) fail("the id ", id, " comes twice");
  }
}

void Bpe::read_merges(const Json& merges) {
  const Json::Array& list = *blaming("merges", [&] { return &merges.as_array(); });
  size_t slots = 16;
  while (slots < 2 * list.size()) slots *= 2;
  merges_.assign(slots, {kEmpty, 0, 0});
  const auto known = [&](std::string_view token) {
    const auto found = id(token);
    if (!found) fail("'", token, "' is not in the vocabulary");
    return static_cast<uint32_t>(*found);
  };
  for (size_t rank = 0; rank < list.size(); ++rank)
    blaming(message("merges[", rank, "]"), [&] {
      const auto [left, right] = parts_of(list[rank]);
      const uint64_t pair = pair_of(known(left), known(right));
      merges_[slot_of(pair)] = {pair, static_cast<uint32_t>(rank), known(left + right)};
    });
}

std::optional<int64_t> Bpe::id(std::string_view token) const {
  const auto found = ids_.find(token);
  return found == ids_.end() ? std::nullopt : std::optional<int64_t>(found->second);
}

const std::string* Bpe::token(int64_t id) const {
  if (id < 0 || id >= kMostId) return nullptr;
  const auto found = by_id_.find(static_cast<uint32_t>(id));
  return found == by_id_.end() ? nullptr : found->second;
}

// Where the pair is in the table, or would be.
size_t Bpe::slot_of(uint64_t pair) const {
  const size_t mask = merges_.size() - 1;
  const uint64_t mixed = pair * 0x9E3779B97F4A7C15u;
  size_t slot = static_cast<size_t>(mixed >> 32) & mask;
  while (merges_[slot].pair != pair && merges_[slot].pair != kEmpty) slot = (slot + 1) & mask;
  return slot;
}

const Bpe::Merge* Bpe::merge_of(uint32_t left, uint32_t right) const {
  const Merge& found = merges_[slot_of(pair_of(left, right))];
  return found.pair == kEmpty ? nullptr : &found;
}

// The tokens of the characters. One that has none becomes those of its bytes, or the unknown token, or nothing.
void Bpe::begin(std::string_view word, std::vector<uint32_t>& symbols) const {
  uint32_t unk = kNone;  // not written yet
  for (size_t at = 0; at < word.size();) {
    const CodePoint code = code_point_at(word, at);
    const std::string_view character = word.substr(at, code.length);
    const int64_t found = code.value < kFirstCharacters ? characters_[code.value] : id(character).value_or(-1);
    at += code.length;
    if (found >= 0) {
      if (unk != kNone) symbols.push_back(std::exchange(unk, kNone));
      symbols.push_back(static_cast<uint32_t>(found));
      continue;
    }
    const auto token_of = [&](char byte) { return byte_tokens_[static_cast<uint8_t>(byte)]; };
    if (byte_fallback_ && std::none_of(character.begin(), character.end(), [&](char c) { return token_of(c) == kNone; })) {
      for (const char byte : character) symbols.push_back(token_of(byte));
    } else if (has_unk_) {
      if (unk != kNone && !fuse_unk_) symbols.push_back(unk);
      const auto known = id(unk_token_);
      if (!known) fail("'", character, "' is not in the vocabulary, and neither is the unknown token '", unk_token_, "'");
      unk = static_cast<uint32_t>(*known);
    }
  }
  if (unk != kNone) symbols.push_back(unk);
}

void Bpe::merge_short(std::vector<uint32_t>& symbols) const {
  uint32_t ranks[kShort], ids[kShort];  // of the pairs that begin at each symbol
  const auto look_up = [&](size_t at) {
    const Merge* merge = at + 1 < symbols.size() ? merge_of(symbols[at], symbols[at + 1]) : nullptr;
    ranks[at] = merge == nullptr ? kNone : merge->rank;
    ids[at] = merge == nullptr ? 0 : merge->id;
  };
  for (size_t at = 0; at < symbols.size(); ++at) look_up(at);
  while (symbols.size() > 1) {
    const size_t best = static_cast<size_t>(std::min_element(ranks, ranks + symbols.size()) - ranks);
    if (ranks[best] == kNone) return;
    symbols[best] = ids[best];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    std::copy(ranks + best + 2, ranks + symbols.size() + 1, ranks + best + 1);
    std::copy(ids + best + 2, ids + symbols.size() + 1, ids + best + 1);
    look_up(best);
    if (best > 0) look_up(best - 1);
  }
}

// The same with a queue of pairs, in which those that are gone are left until their turn comes.
void Bpe::merge_long(Work& work) const {
  std::vector<uint32_t>& symbols = work.symbols;
  std::vector<Work::Symbol>& chain = work.chain;
  std::vector<Work::Candidate>& queue = work.queue;
  const auto later = [](const Work::Candidate& a, const Work::Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.at > b.at;
  };
  const auto candidate = [&](int32_t at) {
    const Work::Symbol& left = chain[static_cast<size_t>(at)];
    const Merge* merge = left.next < 0 ? nullptr : merge_of(left.id, chain[static_cast<size_t>(left.next)].id);
    if (merge != nullptr) queue.push_back({merge->rank, static_cast<uint32_t>(at), merge->id});
    return merge != nullptr;
  };
  const auto size = static_cast<int32_t>(symbols.size());
  chain.clear();
  queue.clear();
  for (int32_t i = 0; i < size; ++i) chain.push_back({symbols[static_cast<size_t>(i)], i - 1, i + 1 < size ? i + 1 : -1, true});
  for (int32_t i = 0; i < size; ++i) candidate(i);
  std::make_heap(queue.begin(), queue.end(), later);
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), later);
    const Work::Candidate best = queue.back();
    queue.pop_back();
    Work::Symbol& left = chain[best.at];
    if (!left.alive || left.next < 0) continue;
    Work::Symbol& right = chain[static_cast<size_t>(left.next)];
    const Merge* merge = merge_of(left.id, right.id);
    if (merge == nullptr || merge->id != best.id) continue;
    left.id = best.id;
    left.next = right.next;
    right.alive = false;
    if (left.next >= 0) chain[static_cast<size_t>(left.next)].previous = static_cast<int32_t>(best.at);
    if (left.previous >= 0 && candidate(left.previous)) std::push_heap(queue.begin(), queue.end(), later);
    if (candidate(static_cast<int32_t>(best.at))) std::push_heap(queue.begin(), queue.end(), later);
  }
  symbols.clear();
  for (const Work::Symbol& symbol : chain)
    if (symbol.alive) symbols.push_back(symbol.id);
}

void Bpe::encode(std::string_view word, Work& work, std::vector<int64_t>& out) const {
  if (ignore_merges_) {
    if (const auto whole = id(word)) {
      out.push_back(*whole);
      return;
    }
  }
  if (word.size() >= static_cast<size_t>(kMostId)) fail("a word of ", word.size(), " bytes is too long");
  work.symbols.clear();
  begin(word, work.symbols);
  if (work.symbols.size() <= kShort) {
    merge_short(work.symbols);
  } else {
    merge_long(work);
  }
  out.insert(out.end(), work.symbols.begin(), work.symbols.end());
}

}  // namespace mobizo::trainer
