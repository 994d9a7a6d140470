// Rows of texts: a byte that says of which kind the file is, then the file.
#include "../../executorch_ops/trainer/text/rows.h"

#include "../../executorch_ops/trainer/text/order.h"
#include "../../executorch_ops/trainer/text/splits.h"
#include "fuzz.h"

using namespace mobizo::trainer;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::InputFile csv("rows.csv"), jsonl("rows.jsonl");
  if (size == 0) return 0;
  const std::string_view content(reinterpret_cast<const char*>(data) + 1, size - 1);
  fuzz::taken([&] {
    if (data[0] == 'c') {
      const std::vector<Conversation> rows = read_conversations(jsonl.holding(content));
      const Splits<Conversation> splits = split_conversations(rows);
      fuzz::promise(splits.train.size() + splits.validation.size() + splits.test.size() <= rows.size(),
                    "a conversation is in one split");
      return;
    }
    const std::vector<std::string> columns(data[0] % 2, "title");
    const std::string& path = (data[0] == 'j' || data[0] == 'k' ? jsonl : csv).holding(content);
    const std::vector<Example> rows = read_examples(path, "text", "label", columns);
    std::vector<std::string> warnings;
    const Splits<Example> splits = split_examples(rows, warnings);
    fuzz::promise(splits.train.size() + splits.validation.size() + splits.test.size() <= rows.size(), "a row is in one split");
  });
  return 0;
}

void fuzz::change(std::string& input, Mutator& mutator) {
  if (input.empty() || input[0] == 't' || input[0] == 's' || mutator.below(2) == 0) return mutator.bytes(input);
  const size_t from = mutator.below(input.size()),
               begin = input.rfind('\n', from) == std::string::npos ? 1 : input.rfind('\n', from) + 1;
  const size_t end = std::min(input.find('\n', begin), input.size());
  std::string line = input.substr(begin, end - begin);
  mutator.json(line);
  input.replace(begin, end - begin, line);
}
