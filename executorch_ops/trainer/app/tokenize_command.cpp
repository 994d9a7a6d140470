#include <loop/run_defaults.h>  // generated

#include <algorithm>
#include <cstdio>

#include "../files/errors.h"
#include "../files/file.h"
#include "../program/program.h"
#include "commands.h"
#include "options.h"
#include "text_input.h"

namespace mobizo::trainer {

void tokenize_command(int argc, char** argv) {
  TextInput input;
  TextOptions& texts = input.options();
  texts.steps = run_defaults::steps;
  int64_t seed = run_defaults::run_seed;
  texts.seed = size_of(seed);
  texts.validation_rows = run_defaults::validation_rows;
  texts.eval_rows = kTestRows;
  std::string out;
  bool overwrite = false, json = false;
  Options options("tokenize PROGRAM FILE --tokenizer FILE --out FILE [OPTION...]",
                  "Write texts, FILE.csv or FILE.jsonl, as a data set of a program: the bytes of mobizo tokenize.");
  options.text("out", "FILE", out, "where the data set goes, as .safetensors; needed");
  options.flag("overwrite", overwrite, "replace that file if there is one");
  input.declare(options);
  options.whole("steps", texts.steps, 1, "steps to lay out batches for; more start again");
  options.seed("seed", seed, "of the batches", &texts.seed);
  options.whole("train-rows", texts.train_rows, 1, "most rows of the training split to use [all]");
  options.whole("validation-rows", texts.validation_rows, 1,
                message("most rows of the validation split to use [", *texts.validation_rows, "]"));
  options.whole("eval-rows", texts.eval_rows, 1, message("most rows of the test split to use [", *texts.eval_rows, "]"));
  options.flag("json", json, "print one JSON object as the last line");
  const auto files = options.parse(argc, argv, 2);
  if (!files) return;
  const std::string &program = (*files)[0], &file = (*files)[1];
  if (out.empty()) fail("--out is needed");
  if (!input.given()) fail("--tokenizer is needed");
  input.check(file);
  check_output("--out", out);
  check_distinct({{"--out", out}}, {{"PROGRAM", program}, {"FILE", file}, {"--tokenizer", input.tokenizer()}});
  if (exists(out) && !overwrite) fail("--out: ", out, " exists: name another file, or add --overwrite");

  const Description description = read_description(program);
  texts.batch_size = description.batch_size;
  TokenizedTexts made = input.tokenized(file, description);
  const Dataset dataset(file, std::move(made.content));
  dataset.check(description);
  write_atomically(out, {made.bytes});
  int64_t longest = 0, tokens = 0;
  const auto rows = [&](const char* name) { return dataset.splits().at(name).rows(); };
  for (const auto& [name, split] : dataset.splits()) {
    tokens += static_cast<int64_t>(split.tokens.size());
    for (int64_t row = 0; row < split.rows(); ++row) longest = std::max(longest, split.length(row));
  }
  std::printf("%lld rows to train, %lld to validate and %lld to test: %s\n", static_cast<long long>(rows("train")),
              static_cast<long long>(rows("validation")), static_cast<long long>(rows("test")), out.c_str());
  if (!json) return;
  const Json report = Json::Object{{"train_rows", rows("train")},
                                   {"validation_rows", rows("validation")},
                                   {"test_rows", rows("test")},
                                   {"longest_row", longest},
                                   {"tokens", tokens},
                                   {"bytes", static_cast<int64_t>(made.bytes.size())}};
  std::printf("%s\n", report.dump().c_str());
}

}  // namespace mobizo::trainer
