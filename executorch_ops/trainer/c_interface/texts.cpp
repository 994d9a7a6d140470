// Data sets of texts.
#include <loop/run_defaults.h>  // generated

#include "../files/file.h"
#include "../text/tokenized.h"
#include "handles.h"

namespace mobizo::trainer::c_interface {
namespace {

mobizo_tokenize_options defaults() {
  static const TextOptions options;  // whose texts outlive the call
  return {sizeof(mobizo_tokenize_options),
          options.text_column.c_str(),
          options.label_column.c_str(),
          options.answers.c_str(),
          run_defaults::steps,
          run_defaults::run_seed,
          /*train_rows=*/0,
          run_defaults::validation_rows,
          kTestRows,
          /*max_length=*/0};
}

std::optional<int64_t> most(int64_t rows, const char* name) {
  if (rows < 0) fail("options.", name, " must be at least 0, got ", rows);
  return rows == 0 ? std::nullopt : std::optional<int64_t>(rows);
}

TextOptions checked(const mobizo_tokenize_options& told, const char* tokenizer, const Description& description) {
  TextOptions options;
  options.tokenizer = given(tokenizer, "tokenizer");
  options.text_column = given(told.text_column, "options.text_column");
  options.label_column = given(told.label_column, "options.label_column");
  options.answers = given(told.answers, "options.answers");
  if (options.answers != "all" && options.answers != "last")
    fail("options.answers must be all or last, got '", options.answers, "'");
  if (told.steps < 1) fail("options.steps must be at least 1, got ", told.steps);
  options.steps = told.steps;
  options.batch_size = description.batch_size;
  options.seed = size_of(told.seed);
  options.train_rows = most(told.train_rows, "train_rows");
  options.validation_rows = most(told.validation_rows, "validation_rows");
  options.eval_rows = most(told.test_rows, "test_rows");
  options.max_length = most(told.max_length, "max_length");
  return options;
}

}  // namespace
}  // namespace mobizo::trainer::c_interface

using namespace mobizo::trainer;
using namespace mobizo::trainer::c_interface;

mobizo_status mobizo_tokenize_options_init(mobizo_tokenize_options* options, uint64_t size) {
  return guarded([&] { initialize(options, size, defaults()); });
}

mobizo_status mobizo_tokenize(mobizo_program* program, const char* texts, const char* tokenizer, const char* dataset,
                              const mobizo_tokenize_options* options, const mobizo_callbacks* callbacks) {
  return guarded([&] {
    const ProgramUse use(program);
    const Description& description = use.program().description();
    const std::string path = given(texts, "texts");
    const TextOptions checked_options = checked(taken(options, "options", defaults()), tokenizer, description);
    const mobizo_callbacks told = taken(callbacks, "callbacks");
    if (!is_text_file(path)) fail("texts: expected FILE.csv or FILE.jsonl, got '", path, "'");
    check_output("dataset", given(dataset, "dataset"));
    check_distinct({{"dataset", dataset}}, {{"texts", path}, {"tokenizer", tokenizer}, {"the program", use.program().path()}});
    TokenizedTexts made = tokenized(path, description, checked_options);
    Dataset(path, std::move(made.content)).check(description);
    for (const std::string& warning : made.warnings)
      if (told.on_warning != nullptr) told.on_warning(printable(warning).c_str(), told.user);
    write_atomically(dataset, {made.bytes});
  });
}
