// What a program says of itself: it is read again as the same, and what is asked of it does not end the process.
#include "../../executorch_ops/trainer/program/description.h"

#include "../../executorch_ops/trainer/program/inputs.h"
#include "fuzz.h"

using namespace mobizo::trainer;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::taken([&] {
    const Description description = parse_description({reinterpret_cast<const char*>(data), size});
    const Description again = parse_description(parse_json(description.text).dump());
    fuzz::promise(again.groups == description.groups && again.adapter.config == description.adapter.config,
                  "a description is read again as the same");
    fuzz::promise(description.classes() >= 1, "there is something to choose from");
    for (const int64_t before : {int64_t{0}, description.max_length - description.tail_length}) {
      const int64_t columns = description.columns(before);
      fuzz::promise(columns >= 1 && columns <= description.max_length, "inputs have the columns that the program takes");
    }
    static_cast<void>(train_step_inputs(description));
    static_cast<void>(evaluate_inputs(description));
  });
  return 0;
}

void fuzz::change(std::string& input, Mutator& mutator) { mutator.json(input); }
