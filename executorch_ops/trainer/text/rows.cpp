#include "rows.h"

#include <algorithm>
#include <functional>

#include "../files/errors.h"
#include "../files/json.h"
#include "../files/utf8.h"
#include "csv.h"
#include "python_json.h"
#include "strings.h"
#include "text_file.h"

namespace mobizo::trainer {
namespace {

// Runs `work`, whose errors go on after "line 5".
template <typename Work>
auto on_line(const std::string& path, size_t line, Work work) -> decltype(work()) {
  try {
    return work();
  } catch (const Error& error) {
    fail("data: ", path, " line ", line, " ", error.what());
  }
}

std::vector<std::string> names_of(const Json& object) {
  std::vector<std::string> names;
  for (const auto& [name, value] : object.as_object()) names.push_back(name);
  return names;
}

// A value as text, if it is a string or, if `plain`, a number or a boolean as JSON writes it.
std::string string_value(const Json& value, const std::string& column, bool plain) {
  const char* kind = kind_of(value);
  const bool known = value.is_string() || value.is_null() || (plain && !is_container(value));
  if (!known) fail("has ", kind, " for ", quoted(column), ", expected a string", plain ? " or a number or true or false" : "");
  const std::string text = value.is_null() ? "" : value.is_string() ? value.as_string() : python_json(value, {});
  bool seen = false;
  for (size_t at = 0; at < text.size() && !seen;) {
    const CodePoint code = code_point_at(text, at);
    at += code.length;
    seen = !is_invisible(code.value);
  }
  if (!seen) fail("has an empty ", quoted(column));
  return text;
}

// Calls `take(line, object)` for each line that is not empty.
void for_each_object(const std::string& path, const std::function<void(size_t, const Json&)>& take) {
  const std::string text = read_text(path);
  size_t number = 0;
  for (std::string_view line : lines_of(text)) {
    ++number;
    if (stripped(line).empty()) continue;
    line = line.substr(0, line.find_last_not_of("\r\n") + 1);
    on_line(path, number, [&] {
      const Json row = [&] {
        try {
          return parse_json(line);
        } catch (const Error& error) {
          constexpr std::string_view kStart = "not JSON ";
          std::string_view why = error.what();
          if (why.substr(0, kStart.size()) == kStart) why.remove_prefix(kStart.size());
          fail("is not JSON (", why, ")");
        }
      }();
      if (!is_object(row)) fail("is no JSON object, but ", shortened(stripped(line)));
      take(number, row);
    });
  }
}

void check_header(const std::vector<std::string>& header, const std::vector<std::string>& wanted) {
  for (const std::string& column : wanted) {
    const auto count = std::count(header.begin(), header.end(), column);
    if (count == 0) fail("has no column ", quoted(column), ", only ", listed(header));
    if (count > 1) fail("has ", count, " columns ", quoted(column), ", expected one");
  }
}

// The value of a column.
using Cells = std::function<Json(const std::string&)>;

void for_each_csv_row(const std::string& path, const std::vector<std::string>& wanted,
                      const std::function<void(size_t, const Cells&)>& take) {
  const std::string text = read_text(path);
  CsvReader reader(text);
  std::vector<std::string> header;
  while (!reader.done()) {
    const size_t line = reader.line() + 1;
    on_line(path, line, [&] {
      const std::vector<std::string> cells = reader.next();
      if (cells.empty()) return;
      if (header.empty()) {
        header = cells;
        return check_header(header, wanted);
      }
      if (cells.size() != header.size())
        fail("has ", cells.size(), " and not the ", header.size(), " cells of the header; a text with commas needs quotes");
      take(line, [&](const std::string& column) {
        return Json(cells[static_cast<size_t>(std::find(header.begin(), header.end(), column) - header.begin())]);
      });
    });
  }
}

void for_each_json_row(const std::string& path, const std::vector<std::string>& wanted,
                       const std::function<void(size_t, const Cells&)>& take) {
  for_each_object(path, [&](size_t line, const Json& object) {
    for (const std::string& column : wanted)
      if (object.find(column) == nullptr) fail("has no column ", quoted(column), ", only ", listed(names_of(object)));
    take(line, [&](const std::string& column) { return object[column]; });
  });
}

Message message_of(size_t number, const Json& json) {
  const bool object = is_object(json);
  if (!object || json.as_object().size() != 2 || json.find("role") == nullptr || json.find("content") == nullptr)
    fail("has in message ", number, " not 'role' and 'content', but ",
         object ? listed(names_of(json)) : shortened(python_repr(json)));
  const Json& role = json["role"];
  const std::string name = role.is_string() ? role.as_string() : "";
  if (name != "system" && name != "user" && name != "assistant")
    fail("has the role ", shortened(role.is_string() ? name : python_repr(role)), " in message ", number,
         ", expected 'system', 'user', 'assistant'");
  return {name, std::string(stripped(string_value(json["content"], "content", false)))};
}

std::vector<Message> messages_of(const Json& row) {
  std::vector<std::string> pair;
  for (const char* name : {"prompt", "response"})
    if (row.find(name) != nullptr) pair.emplace_back(name);
  const Json* list = row.find("messages");
  if (list != nullptr && !pair.empty()) fail("has ", quoted(pair[0]), " and 'messages', expected one of them");
  if (list == nullptr) {
    if (pair.size() < 2)
      fail("has neither 'prompt' and 'response' nor 'messages', only ", listed(names_of(row)),
           "; texts with labels need --template and --verbalizer");
    std::vector<Message> found;
    for (const std::string& name : pair)
      found.push_back({name == "prompt" ? "user" : "assistant", std::string(stripped(string_value(row[name], name, false)))});
    return found;
  }
  if (!is_array(*list) || list->as_array().empty()) fail("has no list of messages, but ", shortened(python_repr(*list)));
  std::vector<Message> found;
  for (const Json& json : list->as_array()) found.push_back(message_of(found.size() + 1, json));
  const size_t first = found[0].role == "system" ? 1 : 0;
  for (size_t i = first; i < found.size(); ++i) {
    const char* expected = (i - first) % 2 == 0 ? "user" : "assistant";
    if (found[i].role != expected)
      fail("has the role ", quoted(found[i].role), " in message ", i + 1, ", expected ", quoted(expected));
  }
  if (found.size() - first < 2 || found.back().role != "assistant") fail("ends without an answer of the assistant");
  return found;
}

}  // namespace

std::vector<Example> read_examples(const std::string& path, const std::string& text_column, const std::string& label_column,
                                   const std::vector<std::string>& columns) {
  const std::string suffix = suffix_of(path);
  if (suffix != ".csv" && suffix != ".jsonl") fail("data: expected FILE.csv or FILE.jsonl, got ", quoted(path));
  if (label_column == text_column || std::find(columns.begin(), columns.end(), label_column) != columns.end())
    fail("label_column: ", quoted(label_column), " is in the prompt too and would give the answer away");
  std::vector<std::string> wanted{text_column, label_column};
  wanted.insert(wanted.end(), columns.begin(), columns.end());
  std::vector<Example> examples;
  const auto take = [&](size_t, const Cells& row) {
    Example example;
    example.text = stripped(string_value(row(text_column), text_column, false));
    example.label = string_value(row(label_column), label_column, true);
    for (const std::string& column : columns)
      example.columns.emplace_back(column, stripped(string_value(row(column), column, true)));
    examples.push_back(std::move(example));
  };
  if (suffix == ".csv") {
    for_each_csv_row(path, wanted, take);
  } else {
    for_each_json_row(path, wanted, take);
  }
  if (examples.empty()) fail("data: ", path, " has no rows");
  return examples;
}

std::vector<Conversation> read_conversations(const std::string& path) {
  if (suffix_of(path) != ".jsonl") fail("data: expected FILE.jsonl, got ", quoted(path));
  std::vector<Conversation> found;
  for_each_object(path,
                  [&](size_t line, const Json& row) { found.push_back({messages_of(row), message(path, " line ", line)}); });
  if (found.empty()) fail("data: ", path, " has no rows");
  return found;
}

}  // namespace mobizo::trainer
