#include "pieces.h"

#include <algorithm>

namespace mobizo::trainer {
namespace {

struct Part {
  size_t begin, end;
  bool match;
};

std::vector<Part> parts_of(size_t size, const std::vector<Match>& matches, bool invert) {
  std::vector<Part> parts;
  parts.reserve(2 * matches.size() + 1);
  size_t done = 0;
  for (const Match& match : matches) {
    if (match.begin > done) parts.push_back({done, match.begin, invert});
    parts.push_back({match.begin, match.end, !invert});
    done = match.end;
  }
  if (done < size) parts.push_back({done, size, invert});
  return parts;
}

// A match goes to the part before it. Of several in a row only the first does.
std::vector<Part> merged_with_previous(const std::vector<Part>& parts) {
  std::vector<Part> merged;
  bool after_match = false;
  for (const Part& part : parts) {
    if (part.match && !after_match && !merged.empty()) {
      merged.back().end = part.end;
    } else {
      merged.push_back(part);
    }
    after_match = part.match;
  }
  return merged;
}

// A match goes to the part behind it. Of several in a row only the last does.
std::vector<Part> merged_with_next(const std::vector<Part>& parts) {
  std::vector<Part> merged;
  bool before_match = false;
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    if (part->match && !before_match && !merged.empty()) {
      merged.back().begin = part->begin;
    } else {
      merged.push_back(*part);
    }
    before_match = part->match;
  }
  std::reverse(merged.begin(), merged.end());
  return merged;
}

std::vector<Part> contiguous(const std::vector<Part>& parts) {
  std::vector<Part> merged;
  for (const Part& part : parts) {
    if (!merged.empty() && merged.back().match == part.match) {
      merged.back().end = part.end;
    } else {
      merged.push_back(part);
    }
  }
  return merged;
}

}  // namespace

void cut(const Piece& piece, const std::vector<Match>& matches, bool invert, Behavior behavior, std::vector<Piece>& out) {
  std::vector<Part> parts = parts_of(piece.end - piece.begin, matches, invert);
  if (behavior == Behavior::kMergedWithPrevious) parts = merged_with_previous(parts);
  if (behavior == Behavior::kMergedWithNext) parts = merged_with_next(parts);
  if (behavior == Behavior::kContiguous) parts = contiguous(parts);
  for (const Part& part : parts)
    if (part.begin < part.end && !(part.match && behavior == Behavior::kRemoved))
      out.push_back({piece.begin + part.begin, piece.begin + part.end, piece.at_start && part.begin == 0});
}

}  // namespace mobizo::trainer
