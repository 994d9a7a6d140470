// Texts: what a file of comma-separated values holds, what a chat template's pieces make, and what Python would draw and print.
#pragma once

#include "../../executorch_ops/trainer/files/blake2b.h"
#include "../../executorch_ops/trainer/text/chat.h"
#include "../../executorch_ops/trainer/text/csv.h"
#include "../../executorch_ops/trainer/text/python_json.h"
#include "../../executorch_ops/trainer/text/python_random.h"
#include "../../executorch_ops/trainer/text/strings.h"
#include "trainer_harness.h"

namespace mobizo::trainer {

// The records of a text, as "cell|cell;" each, or the sentence that refuses it.
inline std::string csv_records(const std::string& content) {
  CsvReader reader(content);
  std::string found;
  try {
    while (!reader.done()) {
      const std::vector<std::string> cells = reader.next();
      for (size_t i = 0; i < cells.size(); ++i) found += (i ? "|" : "") + cells[i];
      found += ";";
    }
  } catch (const Error& error) {
    return found + "!" + error.what();
  }
  return found;
}

inline void csv_cases(Report& report) {
  const auto check = [&](const std::string& content, const std::string& expected) {
    check_equal(report, "csv " + quoted(content), csv_records(content), expected);
  };
  const std::string unclosed =
      "!begins a cell with a quote that no quote before a comma or a line's end closes; quotes within a text are doubled ";
  check("", "");
  check("a,b", "a|b;");
  check("a,b\nc,d\n", "a|b;c|d;");
  check("a\r\nb\rc\n\n,\n", "a;b;c;;|;");
  check("\"a,b\",\"\"\n", "a,b|;");
  check("\"a\nb\r\nc\",d\n", "a\nb\r\nc|d;");
  check("\"a \"\"b\"\"\"\n", "a \"b\";");
  check(" \"a\"\n", "!has a quote in the cell ' \"a\"'; it needs quotes around it and its own doubled");
  check("\"a\"b\n", unclosed + "(',' expected after '\"')");
  check("x\n\"a\n", "x;" + unclosed + "(unexpected end of data)");
}

inline void chat_cases(Report& report) {
  ChatDescription chat{};
  chat.system = Turn{"<s>", Trim::kNone, Trim::kNone};
  chat.user = {"<u>", Trim::kAll, Trim::kAll};
  chat.user_after_system = Turn{"</s><u>", Trim::kNone, Trim::kAll};
  chat.user_after_answer = {"</a><u>", Trim::kAll, Trim::kNone};
  chat.earlier_answer = {"</u><a>", Trim::kNone, Trim::kNone};
  chat.answer = {"</u><a>!", Trim::kNewlines, Trim::kNewlines};
  chat.generation_prompt = "</u><a>";
  chat.end = "</a>";
  chat.special = {"<|end|>"};
  chat.refused = {"</think>", "<x>"};
  for (const auto& [answer, expected] : std::vector<std::pair<std::string, std::string>>{
           {"", ""}, {"a <think> b", "a <think> b"}, {"<x>a</think>b</think>\n\nc", "\n\nc"}, {"a</think>b<|end|>", ""}})
    check_equal(report, "chat: kept of " + quoted(answer), kept(chat, answer), expected);
  const Message asked{"user", " \n1\xC2\xA0"}, answered{"assistant", "\n 2 \n\n"};
  check_equal(report, "chat: a question", rendered(chat, {asked}, true), "<u>1</u><a>");
  check_equal(report, "chat: an answer", rendered(chat, {asked, answered}, false), "<u>1</u><a>! 2 </a>");
  check_equal(report, "chat: another turn", rendered(chat, {{"system", " x "}, asked, answered, asked}, true),
              "<s> x </s><u> \n1</u><a>\n 2 \n\n</a><u>1\xC2\xA0</u><a>");
  chat.system.reset();
  try {
    rendered(chat, {{"system", "x"}, asked}, true);
    report.check("chat: a system that is refused", "taken");
  } catch (const Error& error) {
    check_equal(report, "chat: a system that is refused", error.what(), "the chat template takes no system's message");
  }
}

// As Python 3 has them.
inline void python_cases(Report& report) {
  const auto bits = [](const std::vector<int>& drawn) {
    return Json::list(std::vector<int64_t>(drawn.begin(), drawn.end())).dump();
  };
  std::vector<int> numbers{0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  PythonRandom random(7);
  check_equal(report, "random.Random(7).sample(range(10), 10)", bits(random.sample(numbers, 10)), "[5,2,6,9,0,7,4,1,3,8]");
  random.shuffle(numbers);
  check_equal(report, "then shuffle", bits(numbers), "[7,4,2,5,8,9,3,6,1,0]");
  check_equal(report, "then randrange(1000)", text(random.below(1000)), "60");
  check_equal(report, "repr of a text", quoted("it's \n\x01\xE2\x80\xA8"), "\"it's \\n\\x01\\u2028\"");
  check_equal(report, "repr of bytes that are no UTF-8", quoted("\xFF \xE3") + quoted("\x80\xC3\xA9\xF0"),
              "'\\udcff \\udce3''\\udc80\xC3\xA9\\udcf0'");
  for (const std::string bytes : {"\xE3", "\x80\x80", "\xFF", "a\xF0\x9F"})
    check_equal(report, "strip of bytes that are no UTF-8", std::string(stripped(" " + bytes + "\n")), bytes);
  check_equal(report, "repr of a number", float_text(1e16) + " " + float_text(0.1) + " " + float_text(-1e-5),
              "1e+16 0.1 -1e-05");
  check_equal(report, "json.dumps", python_json(parse_json("{\"b\": [1, 2.50], \"a\": \"\xC3\xA9\\n\"}"), {}),
              "{\"b\": [1, 2.5], \"a\": \"\\u00e9\\n\"}");
  Blake2b keyed("mobizo split 1");
  keyed.update("abc", 3);
  check_equal(report, "blake2b with a key", keyed.hex(), "f6572689029796e6c565336ab50f1b9b");
}

}  // namespace mobizo::trainer
