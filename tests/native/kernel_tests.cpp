// The kernels of every instruction set against the known answers of the noise contract and against plain loops.
//
//   kernel_tests tests/support/noise_vectors.json
//
// Prints one line for each failed check, a digest of everything that noise, perturb and the optimizers wrote (the same on every
// platform), and the count. Exit status 0 if nothing failed.
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "mp_lora_cases.h"
#include "mp_outer_cases.h"
#include "noise_cases.h"
#include "optimizer_cases.h"
#include "perturb_cases.h"

namespace mobizo {
namespace {

// The rows of "key":[["...","..."],...] in the JSON text; its strings hold no escapes.
std::vector<std::vector<std::string>> rows_of(const std::string& json, const std::string& key) {
  std::vector<std::vector<std::string>> rows;
  const size_t start = json.find('"' + key + "\":[[");
  if (start == std::string::npos) return rows;
  const size_t end = json.find("]]", start);
  for (size_t open = json.find("[", json.find("[", start) + 1); open < end; open = json.find("[", open + 1)) {
    rows.emplace_back();
    const size_t close = json.find("]", open);
    for (size_t quote = json.find('"', open); quote < close;) {
      const size_t last = json.find('"', quote + 1);
      rows.back().push_back(json.substr(quote + 1, last - quote - 1));
      quote = json.find('"', last + 1);
    }
  }
  return rows;
}

void known_answers(const std::string& json, const Targets& targets, Report& report) {
  const auto hex = [](const std::string& digits) { return std::strtoull(digits.c_str(), nullptr, 16); };
  const auto words = rows_of(json, "words");
  report.check("known words", words.empty() ? "none found" : "");
  for (const auto& row : words) {  // seed, stream, counter, four words
    const auto got = reference::philox(hex(row[0]), hex(row[1]), std::strtoull(row[2].c_str(), nullptr, 10));
    for (size_t i = 0; i < 4; ++i)
      report.check(text("word ", i, " of counter ", row[2]), got[i] == hex(row[3 + i]) ? "" : text("expected ", row[3 + i]));
  }
  for (const Distribution distribution : kFlatDistributions) {
    const auto values = rows_of(json, std::string(name_of(distribution)));
    report.check(text("known ", name_of(distribution)), values.empty() ? "none found" : "");
    for (const auto& row : values) {  // seed, stream, element, float32
      const int64_t element = std::strtoll(row[2].c_str(), nullptr, 10);
      const NoiseArgs args{
          nullptr,     DType::kFloat32, element + 1, static_cast<int64_t>(hex(row[0])), static_cast<int64_t>(hex(row[1])),
          distribution};
      for (const Target& target : targets) {
        const Buffer out = make_noise(target.kernels, args, element / kTaskElements);
        report.check(text(target.kernels.name, " known ", name_of(distribution), " seed ", row[0], " stream ", row[1],
                          " element ", element),
                     out.bits(out.size() - 1) == hex(row[3]) ? "" : text("expected ", row[3]));
      }
    }
  }
  const auto matrices = rows_of(json, "outer");
  report.check("known outer", matrices.empty() ? "none found" : "");
  for (const auto& row : matrices) {  // seed, stream, rows, columns, element, float32
    const auto number = [&](size_t i) { return std::strtoll(row[i].c_str(), nullptr, 10); };
    const auto seed = static_cast<int64_t>(hex(row[0])), stream = static_cast<int64_t>(hex(row[1]));
    NoiseArgs args{nullptr, DType::kFloat32, number(2) * number(3), seed, stream, Distribution::kOuter, number(3)};
    for (const Target& target : targets) {
      Buffer out(DType::kFloat32, args.numel);
      args.out = out.data();
      const auto signs = make_signs(target.kernels, args, &seed, 1);
      run(target.kernels.noise, args, 0, tasks_of(args), false);
      report.check(text(target.kernels.name, " known outer seed ", row[0], " stream ", row[1], ", ", row[2], " x ", row[3],
                        ", element ", row[4]),
                   out.bits(number(4)) == hex(row[5]) ? "" : text("expected ", row[5]));
    }
  }
}

void selection_case(const Targets& targets, Report& report) {
  unsetenv("MOBIZO_CPU");
  const char* error = "";
  const Kernels* selected = select_kernels(&error);
  report.check("the best instruction set is selected",
               selected == &targets.front().kernels ? "" : text("got ", selected ? selected->name : error));
}

}  // namespace
}  // namespace mobizo

int main(int argc, char** argv) {
  using namespace mobizo;
  std::ifstream file(argc == 2 ? argv[1] : "");
  if (!file) {
    std::fprintf(stderr, "usage: kernel_tests tests/support/noise_vectors.json\n");
    return 2;
  }
  const std::string json{std::istreambuf_iterator<char>(file), {}};
  Targets targets;
  std::string names;
  for (const Kernels* kernels : available_kernels()) {
    targets.push_back({*kernels});
    names += text(names.empty() ? "" : ", ", kernels->name);
  }
  std::printf("instruction sets: %s\n", names.c_str());
  Report report;
  selection_case(targets, report);
  known_answers(json, targets, report);
  noise_cases(targets, report);
  perturb_cases(targets, report);
  storage_cases(targets, report);
  optimizer_cases(targets, report);
  mp_lora_cases(targets, report);
  mp_outer_cases(targets, report);
  for (const Target& target : targets)
    report.check(text(target.kernels.name, " digest"),
                 target.digest.value() == targets.front().digest.value() ? "" : "differs");
  std::printf("digest %016" PRIx64 "\n", targets.front().digest.value());
  return report.finish();
}
