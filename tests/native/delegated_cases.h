// What a delegated program leaves to its host: the directions and the updates of LoRA-B, against the known answers, and the
// promise of its inputs.
#pragma once

#include "../../executorch_ops/trainer/program/host_adapter.h"
#include "../../executorch_ops/trainer/program/inputs.h"
#include "../../executorch_ops/trainer/program/program.h"
#include "trainer_harness.h"

namespace mobizo::trainer {

inline Description delegated_description(int64_t stream, int64_t out, int64_t rank) {
  Description d{};
  d.queries = 1;
  d.groups = 2;
  d.batch_size = 3;
  d.evaluation_rows = 6;
  d.max_length = 5;
  d.targets_per_row = 1;
  d.distribution = "outer";
  d.delegated = true;
  d.adapter.parameters = {{"w", stream, {rank, 4}, {out, rank}, 2.0}};
  return d;
}

// Elements of directions "outer": seed, stream, rows, columns, element, bits of its value.
inline void host_adapter_cases(Report& report, const std::string& path) {
  const Json known = parse_json(read_file(path));
  const auto bits = [](const Json& hex) { return static_cast<int64_t>(std::strtoull(hex.as_string().c_str(), nullptr, 16)); };
  const auto number = [](const Json& json) { return std::strtoll(json.as_string().c_str(), nullptr, 10); };
  for (const Json& entry : known["outer"].as_array()) {
    const Json::Array& answer = entry.as_array();
    const int64_t seed = bits(answer[0]), out = number(answer[2]), rank = number(answer[3]);
    if (out * rank > 1 << 20) continue;
    const auto element = static_cast<size_t>(number(answer[4]));
    const float expected = bits(answer[5]) == 0x3F800000 ? 1.0f : -1.0f;
    const Description d = delegated_description(bits(answer[1]), out, rank);
    HostAdapter host(d, {std::vector<float>(static_cast<size_t>(out * rank))});
    host.draw({seed, seed}, {0.5f, -0.25f});
    const size_t row = element / static_cast<size_t>(rank), column = element % static_cast<size_t>(rank);
    const auto drawn = [&](size_t group) {
      return host.u()[0][group * static_cast<size_t>(out) + row] * host.v()[0][group * static_cast<size_t>(rank) + column];
    };
    check_equal(report, "u v^T of " + entry.dump(), text(drawn(0), " ", drawn(1)),
                text(0.5f * expected, " ", -0.25f * expected));
    const float norm = host.update({{seed}, {2.0f}});
    check_equal(report, "update of " + entry.dump(), text(host.lora_b()[0][element]), text(2 * expected));
    check_equal(report, "its norm", text(norm), text(2 * std::sqrt(static_cast<float>(out * rank))));
  }
  const Description d = delegated_description(1, 3, 2);
  HostAdapter host(d, {std::vector<float>(6)});
  check_error(report, "one seed for two groups", "seeds must have shape (2,), got 1 elements", [&] { host.draw({1}, {1, 1}); });
  check_error(report, "an update of two", "update_seeds must have shape (1,), got 2", [&] { host.update({{1, 2}, {1, 1}}); });
  check_error(report, "another B", "w must have shape (3, 2), got 5", [&] { host.set_lora_b({std::vector<float>(5)}); });
}

inline void method_input_cases(Report& report) {
  const Description d = delegated_description(1, 3, 2);
  const auto shown = [](const std::vector<MethodInput>& inputs) {
    std::string all;
    for (const MethodInput& input : inputs) all += text(input.name, Json::list(input.shape).dump(), " ");
    return all;
  };
  check_equal(report, "inputs of train_step", shown(train_step_inputs(d)),
              "input_ids[3,5] attention_mask[3,5] target_positions[3,1] target_ids[3,1] lora_b:w[3,2] u:w[2,3] v:w[2,2] ");
  check_equal(report, "inputs of evaluate", shown(evaluate_inputs(d)),
              "input_ids[6,5] attention_mask[6,5] target_positions[6,1] lora_b:w[3,2] ");
}

}  // namespace mobizo::trainer
