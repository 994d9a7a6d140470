#include "python_tokenizer.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "../tokenizer/tokenizer.h"
#include "../tokenizer/unicode.h"
#include "python_path.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace mobizo::trainer {
namespace {

py::array_t<int64_t> encode(const Tokenizer& tokenizer, std::string_view text, bool add_special_tokens) {
  const std::vector<int64_t> ids = [&] {
    const py::gil_scoped_release release;
    return tokenizer.encode(text, add_special_tokens);
  }();
  return py::array_t<int64_t>(static_cast<py::ssize_t>(ids.size()), ids.data());
}

std::optional<std::string> token_of(const Tokenizer& tokenizer, int64_t id) {
  const std::string* token = tokenizer.token(id);
  return token == nullptr ? std::nullopt : std::optional<std::string>(*token);
}

}  // namespace

void bind_tokenizer(py::module_& module) {
  module.attr("HAS_REGEX") = Regex::supported();
  module.attr("UNICODE_VERSION") = unicode_version();
  py::class_<StreamDecoder>(module, "StreamDecoder")
      .def("push", &StreamDecoder::push, "id"_a)
      .def("finish", &StreamDecoder::finish);
  py::class_<Tokenizer>(module, "NativeTokenizer")
      .def(py::init([](const Path& path) { return Tokenizer::load(path.string()); }), "path"_a)
      .def("encode", &encode, "text"_a, "add_special_tokens"_a = true)
      .def("decode", &Tokenizer::decode, "ids"_a, "skip_special_tokens"_a = true)
      .def(
          "stream", [](const Tokenizer& tokenizer, bool skip) { return StreamDecoder(tokenizer, skip); },
          "skip_special_tokens"_a = true, py::keep_alive<0, 1>())
      .def("vocabulary_size", &Tokenizer::vocabulary_size)
      .def("token_to_id", &Tokenizer::id, "token"_a)
      .def("id_to_token", &token_of, "id"_a);
}

}  // namespace mobizo::trainer
