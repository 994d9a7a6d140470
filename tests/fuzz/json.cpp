// JSON: what is taken is written and read back as the same value, by our own form and by Python's.
#include "../../executorch_ops/trainer/text/python_json.h"
#include "fuzz.h"

using namespace mobizo::trainer;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::taken([&] {
    const Json value = parse_json({reinterpret_cast<const char*>(data), size});
    const std::string text = value.dump();
    const Json again = parse_json(text);
    fuzz::promise(again == value && again.dump() == text, "JSON is written and read back as the same value");
    for (const JsonStyle style : {JsonStyle{}, JsonStyle{false, false, false}})
      fuzz::promise(parse_json(python_json(value, style)) == value, "JSON is written as Python does and read back");
    static_cast<void>(python_json(value, {true, false, true}));
    static_cast<void>(python_repr(value));
  });
  return 0;
}

void fuzz::change(std::string& input, Mutator& mutator) { mutator.json(input); }
