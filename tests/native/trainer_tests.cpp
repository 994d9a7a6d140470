// The native trainer without a program: its files, its arithmetic, its errors.
//
//   trainer_tests tests/data/noise_vectors.json
//
// Prints one line for each failed check, and the count. Exit status 0 if nothing failed.
#include <cmath>

#include "../../executorch_ops/trainer/estimator.h"
#include "../../executorch_ops/trainer/schedule.h"
#include "../../executorch_ops/trainer/seeds.h"
#include "dataset_cases.h"
#include "journal_cases.h"
#include "json_cases.h"
#include "safetensors_cases.h"

namespace mobizo::trainer {
namespace {

void crc32_cases(Report& report) {
  const auto check = [&](const std::string& bytes, uint32_t expected) {
    check_equal(report, text("crc32 of ", bytes.size(), " bytes"), text(crc32(bytes.data(), bytes.size())), text(expected));
  };
  check("", 0);
  check("123456789", 0xCBF43926u);
  check("The quick brown fox jumps over the lazy dog", 0x414FA339u);
  check(std::string(32, '\0'), 0x190A55ADu);
  check_equal(report, "crc32 in two parts", text(crc32("56789", 5, crc32("1234", 4))), text(0xCBF43926u));
}

void seed_cases(Report& report, const std::string& path) {
  const Json known = parse_json(read_file(path));
  const auto bits = [](const Json& hex) { return static_cast<int64_t>(std::strtoull(hex.as_string().c_str(), nullptr, 16)); };
  for (const Json& entry : known["query_seed"].as_array()) {
    const Json::Array& answer = entry.as_array();  // run seed, n, seed
    const int64_t n = std::strtoll(answer[1].as_string().c_str(), nullptr, 10);
    check_equal(report, "query_seed " + entry.dump(), text(query_seed(bits(answer[0]), n)), text(bits(answer[2])));
  }
  std::vector<int64_t> steps, flat;
  for (int64_t step = 0; step < 5; ++step)
    for (const int64_t seed : query_seeds(42, step, 3)) steps.push_back(seed);
  for (int64_t n = 0; n < 15; ++n) flat.push_back(query_seed(42, n));
  report.check("steps follow each other", steps == flat ? "" : "other seeds");
}

void estimator_cases(Report& report) {
  const auto list = [](const auto& values) { return Json::list(values).dump(); };
  const Estimator two("two_sided", 2, 0.5, false), one("one_sided", 2, 0.5, false);
  check_equal(report, "two_sided groups", text(two.groups()), "4");
  check_equal(report, "two_sided seeds", list(two.seeds({7, 8})), "[7,8,7,8]");
  check_equal(report, "two_sided coeffs", list(two.coeffs()), "[0.5,0.5,-0.5,-0.5]");
  check_equal(report, "two_sided loss", text(two.loss({1, 2, 3, 6})), "3");
  check_equal(report, "two_sided gradients", list(two.projected_gradients({1, 2, 3, 6})), "[-2.0,-4.0]");
  check_equal(report, "one_sided groups", text(one.groups()), "3");
  check_equal(report, "one_sided seeds", list(one.seeds({7, 8})), "[7,7,8]");
  check_equal(report, "one_sided coeffs", list(one.coeffs()), "[0.0,0.5,0.5]");
  check_equal(report, "one_sided loss", text(one.loss({1, 2, 4})), "1");
  check_equal(report, "one_sided gradients", list(one.projected_gradients({1, 2, 4})), "[2.0,6.0]");
  // Of (1, 2, 3, 6) the standard deviation is sqrt(14 / 3), of (2, 4) sqrt(2).
  const Estimator two_normal("two_sided", 2, 0.5, true), one_normal("one_sided", 2, 0.5, true);
  const std::vector<float> expected{static_cast<float>(-1 / std::sqrt(14.0 / 3)), static_cast<float>(-2 / std::sqrt(14.0 / 3))};
  check_equal(report, "two_sided normalized", list(two_normal.projected_gradients({1, 2, 3, 6})), list(expected));
  const std::vector<float> forward{static_cast<float>(1 / std::sqrt(2.0)), static_cast<float>(3 / std::sqrt(2.0))};
  check_equal(report, "one_sided normalized", list(one_normal.projected_gradients({1, 2, 4})), list(forward));
  check_equal(report, "equal losses make no step", list(two_normal.projected_gradients({3, 3, 3, 3})), "[0.0,0.0]");

  check_error(report, "another estimator", "two_sided or one_sided, got 'three'", [] { Estimator("three", 2, 0.5, false); });
  check_error(report, "no queries", "queries must be at least 1, got 0", [] { Estimator("two_sided", 0, 0.5, false); });
  check_error(report, "eps 0", "eps must be positive", [] { Estimator("two_sided", 2, 0, false); });
  check_error(report, "eps NaN", "eps must be positive", [] { Estimator("two_sided", 2, NAN, false); });
  check_error(report, "one perturbed loss", "at least 2 queries", [] { Estimator("one_sided", 1, 0.5, true); });
}

void schedule_cases(Report& report) {
  const auto lr = [](const char* name, int64_t step) { return Schedule(name, 0.5, 8).lr(step); };
  check_equal(report, "constant", text(lr("constant", 0), " ", lr("constant", 7)), "0.5 0.5");
  check_equal(report, "linear", text(lr("linear", 0), " ", lr("linear", 2), " ", lr("linear", 7)), "0.5 0.375 0.0625");
  check_equal(report, "cosine", text(lr("cosine", 0), " ", lr("cosine", 4)), "0.5 0.25");
  const auto coeffs = Schedule("constant", 0.1, 8).update_coeffs(0, {3.0f, -1.0f});
  const std::vector<float> expected{static_cast<float>(-0.1 / 2 * 3.0), static_cast<float>(0.1 / 2 * 1.0)};
  report.check("update coefficients", coeffs == expected ? "" : "other values");
  check_error(report, "another schedule", "lr_schedule must be", [] { Schedule("step", 0.5, 8); });
  check_error(report, "negative lr", "lr must be finite", [] { Schedule("linear", -0.5, 8); });
  check_error(report, "no steps", "steps must be at least 1, got 0", [] { Schedule("linear", 0.5, 0); });
}

}  // namespace
}  // namespace mobizo::trainer

int main(int argc, char** argv) {
  using namespace mobizo;
  if (argc != 2) {
    std::fprintf(stderr, "usage: trainer_tests tests/data/noise_vectors.json\n");
    return 2;
  }
  Report report;
  trainer::json_cases(report);
  trainer::crc32_cases(report);
  trainer::seed_cases(report, argv[1]);
  trainer::estimator_cases(report);
  trainer::schedule_cases(report);
  trainer::safetensors_cases(report);
  trainer::journal_cases(report);
  trainer::dataset_cases(report);
  return report.finish();
}
