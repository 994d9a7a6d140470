// A text on its way to the model: cut into pieces, rewritten, never put together again.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "regex.h"

namespace mobizo::trainer {

struct Piece {
  size_t begin, end;  // bytes of Pieces::text
  bool at_start;      // of the whole text
};

struct Pieces {
  std::string text;
  std::vector<Piece> pieces;

  std::string_view view(const Piece& piece) const {
    return std::string_view(text).substr(piece.begin, piece.end - piece.begin);
  }
};

// What becomes of the matches of a pattern, by which a piece is cut.
enum class Behavior { kRemoved, kIsolated, kContiguous, kMergedWithPrevious, kMergedWithNext };

// Cuts `piece` at matches, which are in order and relative to its begin; what is empty goes.
void cut(const Piece& piece, const std::vector<Match>& matches, bool invert, Behavior behavior, std::vector<Piece>& out);

}  // namespace mobizo::trainer
