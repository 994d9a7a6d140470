// Data sets, up to the batches that a program takes of them.
#include "../../executorch_ops/trainer/program/dataset.h"

#include "safetensors_file.h"

using namespace mobizo::trainer;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::InputFile input("input.safetensors");
  static const Description plain = parse_description(fuzz::whole("description/labels.json")),
                           activated = parse_description(fuzz::whole("description/activated.json"));
  const std::string& path = input.holding({reinterpret_cast<const char*>(data), size});
  fuzz::taken([&] {
    const Dataset dataset(path);
    for (const Description* description : {&plain, &activated}) {
      if (!fuzz::taken([&] { dataset.check(*description); })) continue;
      for (const int64_t step : {int64_t{0}, int64_t{7}, INT64_MAX}) {
        const std::vector<int64_t> rows = dataset.training_rows(step, description->batch_size);
        const Batch batch = make_batch(dataset.split("train"), rows, *description);
        fuzz::promise(
            batch.length <= description->max_length && batch.input_ids.size() == static_cast<size_t>(batch.rows * batch.length),
            "a batch has the columns that its program takes");
        for (const int64_t position : batch.target_positions)
          fuzz::promise(position >= 0 && position < batch.length, "a target lies in its row");
        for (const int64_t token : batch.input_ids)
          fuzz::promise(token >= 0 && token < description->vocabulary, "a token is in the vocabulary");
      }
    }
  });
  return 0;
}

void fuzz::change(std::string& input, Mutator& mutator) { mutate_safetensors(input, mutator); }
