// The pieces of a chat template, then after zero bytes what is said in turn.
#include "../../executorch_ops/trainer/text/chat.h"

#include "fuzz.h"

using namespace mobizo::trainer;

namespace {

std::vector<Message> messages_of(const std::vector<std::string>& parts) {
  std::vector<Message> messages;
  for (size_t i = 1; i < parts.size(); ++i) {
    const bool system = i == 1 && parts[i].substr(0, 1) == "!";
    const bool asks = messages.empty() || messages.back().role != "user";
    messages.push_back({system ? "system" : asks ? "user" : "assistant", parts[i]});
  }
  return messages;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Tokenizer tokenizer(parse_json(fuzz::whole("tokenizer/bytes.json")));
  static const Description base = parse_description(fuzz::whole("description/labels.json"));
  const std::vector<std::string> parts = fuzz::parts_of(data, size, 6);
  fuzz::taken([&] {
    Description description = base;
    description.texts = parse_texts(parse_json(parts[0]));
    const ChatEncoder encoder(description, tokenizer);
    const std::vector<Message> messages = messages_of(parts);
    for (const Message& message : messages) static_cast<void>(kept(*description.texts->chat, message.content));
    for (const bool begin : {false, true})
      fuzz::taken([&] { static_cast<void>(rendered(*description.texts->chat, messages, begin)); });
    fuzz::taken([&] { static_cast<void>(encoder.prompt(messages)); });
    if (messages.empty() || messages.back().role != "assistant") return;
    const Row row = encoder.row(messages, 64, "row 1");
    fuzz::promise(row.targets >= 1 && row.targets <= static_cast<int64_t>(row.tokens.size()) && row.tokens.size() <= 64 &&
                      encoder.ends(row.tokens.back()),
                  "a row ends with its answer, which ends with the token that ends it");
  });
  return 0;
}

void fuzz::change(std::string& input, Mutator& mutator) {
  const size_t end = std::min(input.find('\0'), input.size());
  std::string pieces = input.substr(0, end), said = input.substr(end);
  mutator.below(2) == 0 ? mutator.bytes(said) : mutator.json(pieces);
  input = pieces + said;
}
