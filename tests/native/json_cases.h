// JSON: what is read, what is written, what is refused.
#pragma once

#include "../../executorch_ops/trainer/files/json.h"
#include "trainer_harness.h"

namespace mobizo::trainer {

inline void json_cases(Report& report) {
  const auto round_trip = [&](const std::string& json, const std::string& expected) {
    try {
      check_equal(report, "json " + json, parse_json(json).dump(), expected);
    } catch (const Error& error) {
      report.check("json " + json, error.what());
    }
  };
  round_trip(" [ ] ", "[]");
  round_trip("{}", "{}");
  round_trip("{\"b\" : [true, false, null], \"a\": {\"\": \"\"}}", "{\"b\":[true,false,null],\"a\":{\"\":\"\"}}");
  round_trip("[0, -0, -9223372036854775808, 9223372036854775807]", "[0,0,-9223372036854775808,9223372036854775807]");
  round_trip("[0.1, 1.0, -2.5e-3, 1E2, 1e-300]", "[0.1,1.0,-0.0025,100.0,1e-300]");
  round_trip("0.1234567890123456789", "0.12345678901234568");
  round_trip("\"\\u00e9 \\ud83d\\ude00 \\\"\\\\\\/\\n\\u0001\"", "\"\u00e9 \U0001F600 \\\"\\\\/\\u000a\\u0001\"");
  round_trip("\"caf\u00e9\"", "\"caf\u00e9\"");
  round_trip(std::string(60, '[') + std::string(60, ']'), std::string(60, '[') + std::string(60, ']'));

  for (const char* bad : {"",
                          " ",
                          "[",
                          "]",
                          "{",
                          "[1,]",
                          "[1 2]",
                          "{\"a\":1,}",
                          "{\"a\" 1}",
                          "{a:1}",
                          "{\"a\":1,\"a\":2}",
                          "01",
                          "-",
                          "+1",
                          ".5",
                          "1.",
                          "1e",
                          "1e400",
                          "nan",
                          "NaN",
                          "Infinity",
                          "9223372036854775808",
                          "\"",
                          "\"\\\"",
                          "\"\\x\"",
                          "\"\\u12\"",
                          "\"\\ud800\"",
                          "\"\\ud800\\u0041\"",
                          "\"\\udc00\"",
                          "\"\n\"",
                          "tru",
                          "nullx",
                          "1 1",
                          "[1]]",
                          "'a'"})
    check_error(report, text("json ", bad), "not JSON at byte", [&] { parse_json(bad); });
  for (const char* bad : {"\x80", "\xc1\x80", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80",
                          "\xf5\x80\x80\x80", "\xc3", "\xe2\x82", "\xf0\x9f\x98"})
    check_error(report, text("json of no UTF-8, ", bad), "not JSON at byte 1: expected UTF-8",
                [&] { parse_json(text('"', bad, '"')); });
  round_trip("\"\u007f\u0080\u07ff\u0800\ud7ff\uffff\U00010000\U0010ffff\"",
             "\"\u007f\u0080\u07ff\u0800\ud7ff\uffff\U00010000\U0010ffff\"");
  check_error(report, "json of many levels", "fewer levels", [] { parse_json(std::string(100'000, '[')); });

  std::string many = "{\"\": 0";  // would take minutes if every name were compared with every other
  for (int i = 0; i < 300'000; ++i) many += text(",\"", i, "\": 0");
  report.check("json of many names", parse_json(many + "}").as_object().size() == 300'001 ? "" : "other names");
  check_error(report, "json of many names, one twice", "each name once", [&] { parse_json(many + ",\"7\": 0}"); });

  const Json json = parse_json("{\"whole\": 3, \"number\": 3.0, \"text\": \"3\", \"list\": [1, 2]}");
  report.check("numbers are equal by value", json["whole"] == json["number"] ? "" : "3 is not 3.0");
  report.check("a string is no number", json["whole"] != json["text"] ? "" : "3 is \"3\"");
  report.check("whole numbers are numbers", json["whole"].as_double() == 3.0 ? "" : "not 3.0");
  check_error(report, "a missing member", "'other' is missing", [&] { json["other"]; });
  check_error(report, "a number for a whole number", "expected a whole number, got a number", [&] { json["number"].as_int(); });
  check_error(report, "a string for a list", "expected a list, got a string", [&] { json["text"].as_ints(); });
  check_error(report, "a member of a list", "expected an object, got a list", [&] { json["list"]["a"]; });
}

}  // namespace mobizo::trainer
