// tokenizer.json, then after a zero byte a text to encode.
#include "../../executorch_ops/trainer/text/tokenizer_file.h"
#include "fuzz.h"

using namespace mobizo::trainer;

namespace {

constexpr const char* kText = "It's  3.14 \xC3\xA9\xCC\x81!\r\n<s> \xE4\xBD\xA0\xF0\x9F\x98\x80 <0x41>\xE2\x96\x81 word";

void use(const TokenizerFile& file, const std::string& text) {
  const Tokenizer& tokenizer = file.tokenizer();
  for (const bool special : {false, true}) {
    const std::vector<int64_t> ids = tokenizer.encode(text, special);
    for (const int64_t id : ids) fuzz::promise(tokenizer.token(id) != nullptr, "an id has a token");
    std::string streamed;
    StreamDecoder stream(tokenizer, special);
    for (const int64_t id : ids) streamed += stream.push(id);
    streamed += stream.finish();
    fuzz::promise(streamed == tokenizer.decode(ids, special), "what is decoded id by id is what is decoded at once");
  }
  static_cast<void>(tokenizer.decode({0, 1, 2, 3, -1, 255, INT64_MAX, INT64_MIN}, false));
  static_cast<void>(file.extents(text));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::InputFile input("tokenizer.json");
  const std::vector<std::string> parts = fuzz::parts_of(data, size, 2);
  fuzz::taken([&] {
    const TokenizerFile file(input.holding(parts[0]));
    fuzz::taken([&] { use(file, kText); });
    if (parts.size() > 1) use(file, parts[1]);
  });
  return 0;
}

void fuzz::change(std::string& input, Mutator& mutator) {
  const size_t end = std::min(input.find('\0'), input.size());
  std::string definition = input.substr(0, end), rest = input.substr(end);
  mutator.below(4) == 0 ? mutator.bytes(rest) : mutator.json(definition);
  input = definition + rest;
}
