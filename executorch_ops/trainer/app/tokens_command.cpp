#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>

#include "../files/errors.h"
#include "../tokenizer/tokenizer.h"
#include "commands.h"
#include "options.h"

namespace mobizo::trainer {
namespace {

std::string standard_input() {
  std::string text;
  char buffer[1 << 16];
  while (const size_t bytes = std::fread(buffer, 1, sizeof buffer, stdin)) text.append(buffer, bytes);
  if (std::ferror(stdin) != 0) throw SystemError(errno, "cannot read the standard input");
  return text;
}

// Whole numbers with white space between them.
std::vector<int64_t> ids_in(const std::string& text) {
  constexpr const char* kSpace = " \t\r\n";
  std::vector<int64_t> ids;
  for (size_t at = text.find_first_not_of(kSpace); at != std::string::npos; at = text.find_first_not_of(kSpace, at)) {
    const size_t end = std::min(text.find_first_of(kSpace, at), text.size());
    int64_t id = 0;
    const auto result = std::from_chars(text.data() + at, text.data() + end, id);
    if (result.ec != std::errc() || result.ptr != text.data() + end)
      fail("the standard input must be ids, got '", text.substr(at, std::min<size_t>(end - at, 40)), "' at byte ", at);
    ids.push_back(id);
    at = end;
  }
  return ids;
}

void print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

}  // namespace

void tokens_command(int argc, char** argv) {
  bool decode = false, bare = false, keep_special = false;
  Options options("tokens TOKENIZER [OPTION...]",
                  "Print the ids of the text on the standard input, by a tokenizer.json, or the text of the ids there.");
  options.flag("decode", decode, "from ids to text");
  options.flag("bare", bare, "without the tokens that the tokenizer puts around a text");
  options.flag("keep-special", keep_special, "with --decode: special tokens, too");
  const auto files = options.parse(argc, argv, 1);
  if (!files) return;
  const Tokenizer tokenizer = Tokenizer::load(files->front());
  const std::string input = standard_input();
  if (decode) {
    StreamDecoder stream(tokenizer, !keep_special);
    for (const int64_t id : ids_in(input)) print(stream.push(id));
    print(stream.finish());
    return;
  }
  const char* separator = "";
  for (const int64_t id : tokenizer.encode(input, !bare)) {
    print(message(separator, id));
    separator = " ";
  }
  print("\n");
}

}  // namespace mobizo::trainer
