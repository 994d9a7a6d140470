#include "unicode.h"

#include <algorithm>
#include <iterator>
#include <unordered_map>
#include <vector>

#include "../files/utf8.h"

namespace mobizo::trainer {
namespace {

enum CharacterKind : uint8_t { kOther, kLetter, kWordNumber, kOtherNumber, kConnector, kPunctuation };

struct KindRange {
  uint32_t first, last;
  CharacterKind kind;
};
struct NewerRange {
  uint32_t first, last;
  const char* category;
};
struct ClassRange {
  uint32_t first, last;
  uint8_t combining_class;
};
struct Decomposition {
  uint32_t code, first, second;  // second: 0 for none
  bool composes;
};

#include "unicode_tables.h"

// Below them no character is a mark, and none has a decomposition that NFC would keep.
constexpr uint32_t kFirstMark = 0x300;
constexpr uint32_t kFirstDecomposed = 0xC0;

// Hangul syllables are composed by rule: leading consonant, vowel, trailing consonant.
constexpr uint32_t kSyllables = 0xAC00, kLeading = 0x1100, kVowels = 0x1161, kTrailing = 0x11A7;
constexpr uint32_t kVowelCount = 21, kTrailingCount = 28, kLeadingCount = 19;
constexpr uint32_t kSyllableCount = kLeadingCount * kVowelCount * kTrailingCount;

// The range of a sorted table that holds the code point, or nullptr.
template <typename Range, size_t n>
const Range* range_of(const Range (&table)[n], uint32_t code) {
  const Range* found = std::upper_bound(std::begin(table), std::end(table), code,
                                        [](uint32_t c, const Range& range) { return c < range.first; });
  if (found == std::begin(table)) return nullptr;
  --found;
  return code <= found->last ? found : nullptr;
}

CharacterKind kind_of(uint32_t code) {
  const KindRange* range = range_of(kKindRanges, code);
  return range == nullptr ? kOther : range->kind;
}

uint8_t combining_class(uint32_t code) {
  if (code < kFirstMark) return 0;
  const ClassRange* range = range_of(kClassRanges, code);
  return range == nullptr ? 0 : range->combining_class;
}

const Decomposition* decomposition_of(uint32_t code) {
  if (code < kFirstDecomposed) return nullptr;
  const auto* found = std::lower_bound(std::begin(kDecompositions), std::end(kDecompositions), code,
                                       [](const Decomposition& d, uint32_t c) { return d.code < c; });
  return found != std::end(kDecompositions) && found->code == code ? found : nullptr;
}

void decompose(uint32_t code, std::vector<uint32_t>& out) {
  if (code - kSyllables < kSyllableCount) {
    const uint32_t index = code - kSyllables;
    out.push_back(kLeading + index / (kVowelCount * kTrailingCount));
    out.push_back(kVowels + index / kTrailingCount % kVowelCount);
    if (index % kTrailingCount != 0) out.push_back(kTrailing + index % kTrailingCount);
  } else if (const Decomposition* parts = decomposition_of(code)) {
    decompose(parts->first, out);
    if (parts->second != 0) decompose(parts->second, out);
  } else {
    out.push_back(code);
  }
}

// What the two compose to, 0 for nothing.
uint32_t composed(uint32_t first, uint32_t second) {
  static const std::unordered_map<uint64_t, uint32_t> pairs = [] {
    std::unordered_map<uint64_t, uint32_t> map;
    for (const Decomposition& d : kDecompositions)
      if (d.composes) map.emplace(uint64_t{d.first} << 32 | d.second, d.code);
    return map;
  }();
  if (first - kLeading < kLeadingCount && second - kVowels < kVowelCount)
    return kSyllables + ((first - kLeading) * kVowelCount + second - kVowels) * kTrailingCount;
  const bool open_syllable = first - kSyllables < kSyllableCount && (first - kSyllables) % kTrailingCount == 0;
  if (open_syllable && second - kTrailing - 1 < kTrailingCount - 1) return first + second - kTrailing;
  const auto found = pairs.find(uint64_t{first} << 32 | second);
  return found == pairs.end() ? 0 : found->second;
}

// Decomposed, and marks in the order of their classes.
std::vector<uint32_t> decomposed(std::string_view text) {
  std::vector<uint32_t> codes;
  for (size_t at = 0; at < text.size();) {
    const CodePoint code = code_point_at(text, at);
    decompose(code.value, codes);
    at += code.length;
  }
  for (auto begin = codes.begin(); begin != codes.end();) {
    const auto is_starter = [](uint32_t code) { return combining_class(code) == 0; };
    begin = std::find_if_not(begin, codes.end(), is_starter);
    const auto end = std::find_if(begin, codes.end(), is_starter);
    std::stable_sort(begin, end, [](uint32_t a, uint32_t b) { return combining_class(a) < combining_class(b); });
    begin = end;
  }
  return codes;
}

void compose(std::vector<uint32_t>& codes) {
  size_t size = 0, starter = 0;
  bool has_starter = false;
  uint8_t last_class = 0;  // of what was kept since the starter
  for (const uint32_t code : codes) {
    const uint8_t its_class = combining_class(code);
    const bool reaches = has_starter && (size == starter + 1 || last_class < its_class);
    const uint32_t both = reaches ? composed(codes[starter], code) : 0;
    if (both != 0) {
      codes[starter] = both;
      continue;
    }
    if (its_class == 0) {
      starter = size;
      has_starter = true;
    }
    last_class = its_class;
    codes[size++] = code;
  }
  codes.resize(size);
}

std::string utf8_of(const std::vector<uint32_t>& codes) {
  std::string out;
  for (const uint32_t code : codes) append_utf8(code, out);
  return out;
}

bool all_below(std::string_view text, uint32_t limit) {
  for (size_t at = 0; at < text.size();) {
    const CodePoint code = code_point_at(text, at);
    if (code.value >= limit) return false;
    at += code.length;
  }
  return true;
}

}  // namespace

const char* unicode_version() { return kTablesVersion; }

bool is_white_space(uint32_t code) {
  if (code < 0x80) return code == ' ' || (code >= 9 && code <= 13);
  return code == 0x85 || code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
         code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

bool is_word(uint32_t code) {
  const CharacterKind kind = kind_of(code);
  return kind == kLetter || kind == kWordNumber || kind == kConnector || code == 0x200C || code == 0x200D;
}

bool is_numeric(uint32_t code) {
  const CharacterKind kind = kind_of(code);
  return kind == kWordNumber || kind == kOtherNumber;
}

bool is_punctuation(uint32_t code) {
  const CharacterKind kind = kind_of(code);
  return kind == kPunctuation || kind == kConnector;
}

std::vector<std::pair<uint32_t, uint32_t>> newer_characters(std::string_view category) {
  std::vector<std::pair<uint32_t, uint32_t>> ranges;
  for (const NewerRange& range : kNewerRanges) {
    if (std::string_view(range.category).substr(0, category.size()) != category) continue;
    if (!ranges.empty() && ranges.back().second + 1 == range.first) {
      ranges.back().second = range.last;
    } else {
      ranges.emplace_back(range.first, range.last);
    }
  }
  return ranges;
}

std::string to_nfc(std::string_view text) {
  if (all_below(text, kFirstMark)) return std::string(text);
  std::vector<uint32_t> codes = decomposed(text);
  compose(codes);
  return utf8_of(codes);
}

std::string to_nfd(std::string_view text) {
  if (all_below(text, kFirstDecomposed)) return std::string(text);
  return utf8_of(decomposed(text));
}

}  // namespace mobizo::trainer
