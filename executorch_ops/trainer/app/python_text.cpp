#include "python_text.h"

#include <pybind11/stl.h>

#include "../text/chat.h"
#include "../text/strings.h"

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

void bind_text(py::module_& module) {
  module.def(
      "chat_text",
      [](const std::string& texts, const Pairs& messages, bool begin) {
        const TextsDescription parsed = parse_texts(parse_json(texts));
        if (!parsed.chat) throw py::value_error(*parsed.no_chat);
        return rendered(*parsed.chat, messages_of(messages), begin);
      },
      "texts"_a, "messages"_a, "begin"_a);
  module.def("quoted", [](const std::string& text) { return quoted(text); }, "text"_a);
  module.def("stripped", [](const std::string& text) { return std::string(stripped(text)); }, "text"_a);
  module.def("is_invisible", &is_invisible, "code"_a);
  module.def("float_text", &float_text, "value"_a);
}

}  // namespace mobizo::trainer
