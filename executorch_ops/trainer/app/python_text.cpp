#include "python_text.h"

#include <pybind11/stl.h>

#include "../program/file_info.h"
#include "../text/chat.h"
#include "../text/python_random.h"
#include "../text/rows.h"
#include "../text/strings.h"
#include "../text/tokenized.h"
#include "python_path.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace mobizo::trainer {
namespace {

using Pairs = std::vector<std::pair<std::string, std::string>>;

std::vector<Message> messages_of(const Pairs& pairs) {
  std::vector<Message> messages;
  for (const auto& [role, content] : pairs) messages.push_back({role, content});
  return messages;
}

}  // namespace

uint64_t size_of(const py::int_& seed) {
  return py::reinterpret_steal<py::int_>(PyNumber_Absolute(seed.ptr())).cast<uint64_t>();
}

void bind_text(py::module_& module) {
  module.def("file_info", [](const Path& path) { return file_info(path.string()).dump(); }, "path"_a);
  module.def("check_description", [](const std::string& text) { parse_description(text); }, "text"_a);
  module.def(
      "chat_text",
      [](const std::string& texts, const Pairs& messages, bool begin) {
        const TextsDescription parsed = parse_texts(parse_json(texts));
        if (!parsed.chat) throw py::value_error(*parsed.no_chat);
        return rendered(*parsed.chat, messages_of(messages), begin);
      },
      "texts"_a, "messages"_a, "begin"_a);
  module.def(
      "read_examples",
      [](const std::string& path, const std::string& text, const std::string& label, const std::vector<std::string>& columns) {
        py::list found;
        for (const Example& row : read_examples(path, text, label, columns))
          found.append(py::make_tuple(row.text, row.label, row.columns));
        return found;
      },
      "path"_a, "text_column"_a, "label_column"_a, "columns"_a);
  module.def(
      "read_conversations",
      [](const std::string& path) {
        py::list found;
        for (const Conversation& row : read_conversations(path)) {
          Pairs messages;
          for (const Message& message : row.messages) messages.emplace_back(message.role, message.content);
          found.append(py::make_tuple(messages, row.where));
        }
        return found;
      },
      "path"_a);
  module.def(
      "tokenized",  // the bytes of the data set, and warnings
      [](const std::string& path, const std::string& description, const std::string& tokenizer, const std::string& answers,
         int64_t steps, int64_t batch_size, const py::int_& seed, std::optional<int64_t> train_rows,
         std::optional<int64_t> validation_rows, std::optional<int64_t> eval_rows, std::optional<int64_t> max_length) {
        TextOptions options{tokenizer,     "text",     "label",         answers,   steps,     batch_size,
                            size_of(seed), train_rows, validation_rows, eval_rows, max_length};
        const Description parsed = parse_description(description);
        TokenizedTexts made = tokenized(path, parsed, options);
        static_cast<void>(Dataset(path, std::move(made.content)));  // checks it
        return py::make_tuple(py::bytes(made.bytes), made.warnings);
      },
      "path"_a, "description"_a, "tokenizer"_a, py::kw_only(), "answers"_a = "all", "steps"_a = 1, "batch_size"_a = 1,
      "seed"_a = 0, "train_rows"_a = py::none(), "validation_rows"_a = py::none(), "eval_rows"_a = py::none(),
      "max_length"_a = py::none());
  module.def("tokenizer_fingerprint", [](const std::string& path) { return TokenizerFile(path).fingerprint(); }, "path"_a);
  module.def(
      "draw",  // shuffled numbers below n, then `count` of them, then one number below n
      [](const py::int_& seed, size_t n, size_t count) {
        PythonRandom random(size_of(seed));
        std::vector<size_t> numbers(n);
        for (size_t i = 0; i < n; ++i) numbers[i] = i;
        random.shuffle(numbers);
        const std::vector<size_t> drawn = random.sample(numbers, count);
        return py::make_tuple(numbers, drawn, random.below(n));
      },
      "seed"_a, "n"_a, "count"_a);
  module.def("quoted", [](const std::string& text) { return quoted(text); }, "text"_a);
  module.def("stripped", [](const std::string& text) { return std::string(stripped(text)); }, "text"_a);
  module.def("is_invisible", &is_invisible, "code"_a);
  module.def("float_text", &float_text, "value"_a);
}

}  // namespace mobizo::trainer
