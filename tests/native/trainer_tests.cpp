// The native trainer without a program: its files, its arithmetic, its errors.
//
//   trainer_tests tests/support/noise_vectors.json
//
// Prints one line for each failed check, and the count. Exit status 0 if nothing failed.
#include <cmath>

#include "../../executorch_ops/trainer/files/blake2b.h"
#include "../../executorch_ops/trainer/files/update_rule.h"
#include "../../executorch_ops/trainer/loop/divergence.h"
#include "../../executorch_ops/trainer/loop/estimator.h"
#include "../../executorch_ops/trainer/loop/schedule.h"
#include "../../executorch_ops/trainer/loop/seeds.h"
#include "../../executorch_ops/trainer/loop/selection.h"
#include "damage_cases.h"
#include "dataset_cases.h"
#include "delegated_cases.h"
#include "journal_cases.h"
#include "json_cases.h"
#include "logistic_cases.h"
#include "safetensors_cases.h"
#include "text_cases.h"
#include "tokenizer_cases.h"

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

// As Python's hashlib.blake2b(..., digest_size=16) has them.
void blake2b_cases(Report& report) {
  const auto check = [&](const std::string& bytes, const std::string& expected) {
    Blake2b whole, parts;
    whole.update(bytes.data(), bytes.size());
    for (const char& byte : bytes) parts.update(&byte, 1);
    check_equal(report, text("blake2b of ", bytes.size(), " bytes"), whole.hex(), expected);
    check_equal(report, text("blake2b of ", bytes.size(), " bytes, one by one"), parts.hex(), expected);
  };
  std::string counted;
  for (int i = 0; i < 256; ++i) counted += static_cast<char>(i);
  check("", "cae66941d9efbd404e4d88758ea67670");
  check("abc", "cf4ab791c62b8d2b2109c90275287816");
  check(counted.substr(0, 128), "a74787004ef589e31149183900d0294a");
  check(counted, "c2472c0ac37a8dbdb25f05ada0d82643");
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
  const Estimator centred("centred", 3, 0.5, false), centred_normal("centred", 4, 0.5, true);
  check_equal(report, "centred groups", text(centred.groups()), "3");
  check_equal(report, "centred seeds", list(centred.seeds({7, 8, 9})), "[7,8,9]");
  check_equal(report, "centred coeffs", list(centred.coeffs()), "[0.5,0.5,0.5]");
  check_equal(report, "centred loss", text(centred.loss({1, 2, 6})), "3");
  check_equal(report, "centred gradients", list(centred.projected_gradients({1, 2, 6})), "[-6.0,-3.0,9.0]");
  // For (1, 2, 3, 6) the standard deviation is sqrt(14 / 3), of (2, 4) sqrt(2).
  const Estimator two_normal("two_sided", 2, 0.5, true), one_normal("one_sided", 2, 0.5, true);
  const std::vector<float> expected{static_cast<float>(-1 / std::sqrt(14.0 / 3)), static_cast<float>(-2 / std::sqrt(14.0 / 3))};
  check_equal(report, "two_sided normalized", list(two_normal.projected_gradients({1, 2, 3, 6})), list(expected));
  const std::vector<float> forward{static_cast<float>(1 / std::sqrt(2.0)), static_cast<float>(3 / std::sqrt(2.0))};
  check_equal(report, "one_sided normalized", list(one_normal.projected_gradients({1, 2, 4})), list(forward));
  std::vector<float> deviations;
  for (const double deviation : {-2.0, -1.0, 0.0, 3.0})
    deviations.push_back(static_cast<float>(deviation / std::sqrt(14.0 / 3)));
  check_equal(report, "centred normalized", list(centred_normal.projected_gradients({1, 2, 3, 6})), list(deviations));
  check_equal(report, "equal losses make no step", list(two_normal.projected_gradients({3, 3, 3, 3})), "[0.0,0.0]");

  check_error(report, "another estimator", "two_sided, one_sided, centred, got 'three'",
              [] { Estimator("three", 2, 0.5, false); });
  check_error(report, "no queries", "queries must be at least 1, got 0", [] { Estimator("two_sided", 0, 0.5, false); });
  check_error(report, "eps 0", "eps must be positive", [] { Estimator("two_sided", 2, 0, false); });
  check_error(report, "eps NaN", "eps must be positive", [] { Estimator("two_sided", 2, NAN, false); });
  check_error(report, "one loss to centre", "at least 2 with the centred estimator, got 1",
              [] { Estimator("centred", 1, 0.5, false); });
  check_error(report, "one perturbed loss", "at least 2 queries", [] { Estimator("one_sided", 1, 0.5, true); });
}

void schedule_cases(Report& report) {
  const auto lr = [](const char* name, int64_t step) { return Schedule(name, 0.5, 8).lr(step); };
  check_equal(report, "constant", text(lr("constant", 0), " ", lr("constant", 7)), "0.5 0.5");
  check_equal(report, "linear", text(lr("linear", 0), " ", lr("linear", 2), " ", lr("linear", 7)), "0.5 0.375 0.0625");
  check_equal(report, "cosine", text(lr("cosine", 0), " ", lr("cosine", 4)), "0.5 0.25");
  check_error(report, "another schedule", "lr_schedule must be", [] { Schedule("step", 0.5, 8); });
  check_error(report, "negative lr", "lr must be at least 0 and finite in float32", [] { Schedule("linear", -0.5, 8); });
  check_error(report, "lr beyond float32", "lr must be at least 0 and finite in float32", [] { Schedule("linear", 1e39, 8); });
  check_error(report, "more steps than any run has", "steps must be from 1 to 2147483647, got 2147483648",
              [] { Schedule("linear", 0.5, int64_t{1} << 31); });
  check_error(report, "eps that is 0 in float32", "eps must be positive and finite in float32",
              [] { Estimator("two_sided", 2, 1e-50, false); });
  check_error(report, "no steps", "steps must be from 1 to 2147483647, got 0", [] { Schedule("linear", 0.5, 0); });
}

void update_rule_cases(Report& report) {
  const UpdateRule plain, momentum{"sgd", 0.9}, adam{"adam", 0, 0.5, 0.75, 1e-6, 0.1}, sign{"sign"};
  check_equal(report, "sgd", plain.json().dump(), R"({"name":"sgd","momentum":0.0,"weight_decay":0.0})");
  check_equal(report, "adam", adam.json().dump(), R"({"name":"adam","beta1":0.5,"beta2":0.75,"eps":1e-06,"weight_decay":0.1})");
  check_equal(report, "sign", sign.json().dump(), R"({"name":"sign","weight_decay":0.0})");
  for (const UpdateRule& rule : {plain, momentum, adam, sign})
    check_equal(report, "parsed " + rule.name, parse_update_rule(rule.json()).json().dump(), rule.json().dump());
  const auto flags = [](const UpdateRule& r) { return text(r.plain(), r.has_state(), r.takes_rate()); };
  check_equal(report, "kinds", flags(plain) + flags(momentum) + flags(adam) + flags(sign), "100010011001");
  check_equal(report, "coefficients", text(plain.coefficient(0.5, 4), " ", adam.coefficient(0.5, 4)), "-0.125 0.25");
  check_equal(report, "rates", text(plain.rate(0.5, 7), " ", adam.rate(0.5, 0)), "0.5 0.5");
  check_equal(report, "rate of update 2", text(adam.rate(0.3, 1)), text(0.3 * std::sqrt(1 - 0.5625) / 0.75));
  check_equal(report, "decay", text(adam.decay(0.5), " ", plain.decay(0.5)), "0.95 1");
  const auto refused = [&](const char* json, const char* part) {
    check_error(report, json, part, [&] { parse_update_rule(parse_json(json)); });
  };
  refused(R"({"name": "lion", "weight_decay": 0})", "name must be one of sgd, adam, sign, got 'lion'");
  refused(R"({"name": "sgd", "momentum": 1, "weight_decay": 0})", "momentum must be in [0, 1), got 1.0");
  refused(R"({"name": "adam", "beta1": 0.5, "beta2": 0.5, "eps": 0, "weight_decay": 0})",
          "eps of adam must be positive and finite in float32, got 0.0");
  refused(R"({"name": "sign"})", "'weight_decay' is missing");
}

// As tests/training/test_divergence.py has it, shortly.
void divergence_cases(Report& report) {
  const auto unsteady_at = [](const std::vector<float>& losses) {
    DivergenceGuard guard;
    for (size_t step = 0; step < losses.size(); ++step)
      if (guard.observe(losses[step], std::isfinite(losses[step]))) return static_cast<int64_t>(step);
    return int64_t{-1};
  };
  std::vector<float> losses, rising;
  for (int step = 0; step < 200; ++step) losses.push_back(step % 2 == 0 ? 0.4f : 0.8f);
  check_equal(report, "steady losses", text(unsteady_at(losses)), "-1");
  losses[100] = 8;
  check_equal(report, "one loss far off", text(unsteady_at(losses)), "-1");
  rising.assign(losses.begin(), losses.begin() + 60);
  for (int step = 0; step < 60; ++step) rising.push_back(3);
  // The mean rises by a twentieth of the way at each step; three deviations of 0.2 above 0.6 is a quarter of the way.
  check_equal(report, "losses that run away", text(unsteady_at(rising)), "65");
  DivergenceGuard validated;
  std::string unsteady;
  for (const double loss : {0.6, 0.5, 0.89, 0.91, 0.6, std::nan("")}) unsteady += validated.validate(loss) ? "1" : "0";
  check_equal(report, "validations", unsteady, "000101");
  unsteady.clear();
  DivergenceGuard rewarded;  // whose losses may be below zero, where no share of one means anything
  for (const double loss : {-0.1, -5.0, 3.0, std::nan("")}) unsteady += rewarded.validate(loss) ? "1" : "0";
  check_equal(report, "validations of rewards", unsteady, "0001");
  std::vector<float> below(25, -9);
  below.push_back(-8.99f);
  check_equal(report, "losses below zero", text(unsteady_at(below)), "-1");
  check_equal(report, "no losses", text(unsteady_at(std::vector<float>(40, NAN))), "19");
}

// As tests/training/test_selection.py has it, shortly.
void selection_cases(Report& report) {
  const auto kept = [](const std::vector<std::vector<double>>& validations) {
    Selection selection;
    std::string answers;
    for (const std::vector<double>& losses : validations) answers += selection.keep(losses) ? "1" : "0";
    return answers;
  };
  check_equal(report, "lower losses", kept({{3, 9}, {2, 9}, {1, 8}}), "111");
  // Differences of 0 and 2 are 1 +- 1, of 0.9 and 1.3 they are 1.1 +- 0.2.
  check_equal(report, "two standard errors", kept({{3, 9}, {3, 11}, {3.9, 10.3}}), "110");
  check_equal(report, "losses that are not finite", kept({{1, NAN}, {1, INFINITY}, {1, 2}, {0, NAN}}), "0010");
  check_equal(report, "one row", kept({{0.5}, {0.6}, {0.5}, {0.4}}), "1011");
  Selection selection;
  std::string lowest;
  for (const double loss : {2.0, 1.0, 1.0, double{NAN}, 0.5}) {
    selection.keep({loss, 3});
    lowest += selection.is_lowest() ? "1" : "0";
  }
  check_equal(report, "lowest losses", lowest, "11001");
}

}  // namespace
}  // namespace mobizo::trainer

int main(int argc, char** argv) {
  using namespace mobizo;
  if (argc != 2) {
    std::fprintf(stderr, "usage: trainer_tests tests/support/noise_vectors.json\n");
    return 2;
  }
  Report report;
  trainer::json_cases(report);
  trainer::crc32_cases(report);
  trainer::blake2b_cases(report);
  trainer::seed_cases(report, argv[1]);
  trainer::estimator_cases(report);
  trainer::schedule_cases(report);
  trainer::update_rule_cases(report);
  trainer::divergence_cases(report);
  trainer::selection_cases(report);
  trainer::logistic_cases(report);
  trainer::safetensors_cases(report);
  trainer::tokenizer_cases(report);
  trainer::csv_cases(report);
  trainer::chat_cases(report);
  trainer::python_cases(report);
  trainer::damage_cases(report);
  trainer::journal_cases(report);
  trainer::dataset_cases(report);
  trainer::host_adapter_cases(report, argv[1]);
  trainer::method_input_cases(report);
  return report.finish();
}
