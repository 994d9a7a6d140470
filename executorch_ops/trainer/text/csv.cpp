#include "csv.h"

#include "../files/errors.h"
#include "strings.h"
#include "text_file.h"

namespace mobizo::trainer {
namespace {

enum class State { kStartRecord, kStartField, kInField, kInQuotes, kQuoteInQuotes, kEndOfLine };

[[noreturn]] void unclosed(const char* why) {
  fail("begins a cell with a quote that no quote before a comma or a line's end closes; quotes within a text are doubled (",
       why, ")");
}

// The machine of CPython's Modules/_csv.c.
class Record {
 public:
  void add(char c) {
    const bool ends = c == '\n' || c == '\r';
    switch (state_) {
      case State::kStartRecord:
        if (ends) {
          state_ = State::kEndOfLine;
          return;
        }
        [[fallthrough]];
      case State::kStartField:
        if (ends || c == ',') return end_cell(ends);
        if (c == '"') {
          state_ = State::kInQuotes;
          return;
        }
        cell_ += c;
        state_ = State::kInField;
        return;
      case State::kInField:
        if (ends || c == ',') return end_cell(ends);
        cell_ += c;
        return;
      case State::kInQuotes:
        if (c == '"') {
          state_ = State::kQuoteInQuotes;
        } else {
          cell_ += c;
        }
        return;
      case State::kQuoteInQuotes:
        if (ends || c == ',') return end_cell(ends);
        if (c != '"') unclosed("',' expected after '\"'");
        cell_ += c;
        state_ = State::kInQuotes;
        return;
      case State::kEndOfLine:  // the line feed behind a carriage return
        return;
    }
  }

  // At the end of a line. Whether the record ends, too.
  bool end_line() {
    if (state_ == State::kInQuotes) return false;
    if (state_ != State::kStartRecord && state_ != State::kEndOfLine) end_cell(true);
    return true;
  }

  std::vector<std::string> cells;

 private:
  void end_cell(bool line) {
    cells.push_back(std::move(cell_));
    cell_.clear();
    state_ = line ? State::kEndOfLine : State::kStartField;
  }

  State state_ = State::kStartRecord;
  std::string cell_;
};

std::string doubled_quotes(const std::string& cell) {
  std::string out = "\"";
  for (const char c : cell) out += c == '"' ? std::string("\"\"") : std::string(1, c);
  return out += '"';
}

}  // namespace

CsvReader::CsvReader(std::string_view text) : lines_(lines_of(text)) {}

std::vector<std::string> CsvReader::next() {
  const size_t first = at_;
  Record record;
  for (bool ended = false; !ended;) {
    if (done()) unclosed("unexpected end of data");
    for (const char c : lines_[at_]) record.add(c);
    ++at_;
    ended = record.end_line();
  }
  std::string text;  // only looked at if a cell has a quote in it
  for (const std::string& cell : record.cells) {
    if (cell.find('"') == std::string::npos) continue;
    if (text.empty())
      for (size_t line = first; line < at_; ++line) text += lines_[line];
    if (text.find(doubled_quotes(cell)) == std::string::npos)
      fail("has a quote in the cell ", shortened(cell), "; it needs quotes around it and its own doubled");
  }
  return record.cells;
}

}  // namespace mobizo::trainer
