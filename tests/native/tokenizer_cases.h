// The tokenizer without a file: its alphabet, normal forms, expressions, merges and decoders. Python's tests compare it with
// the library that it follows.
#pragma once

#include <thread>

#include "../../executorch_ops/trainer/tokenizer/byte_level.h"
#include "../../executorch_ops/trainer/tokenizer/regex.h"
#include "../../executorch_ops/trainer/tokenizer/tokenizer.h"
#include "../../executorch_ops/trainer/tokenizer/unicode.h"
#include "trainer_harness.h"

namespace mobizo::trainer {

inline void unicode_cases(Report& report) {
  check_equal(report, "NFC of what composes", to_nfc("e\u0301 \u1100\u1161\u11A8 \u212B"), "\u00E9 \uAC01 \u00C5");
  check_equal(report, "NFC of what is excluded", to_nfc("\u0958"), "\u0915\u093C");
  check_equal(report, "NFC in the order of classes", to_nfc("a\u0301\u0323"), "\u1EA1\u0301");
  check_equal(report, "NFC of what is blocked", to_nfc("a\u0315\u0300\u05AE\u0300b"), "\u00E0\u05AE\u0300\u0315b");
  check_equal(report, "NFD", to_nfd("\u1EA5 \uAC01"), "a\u0302\u0301 \u1100\u1161\u11A8");
  std::string all, back;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  check_equal(report, "the alphabet of a space and a line", byte_level(" \n"), "\u0120\u010A");
  report.check("the alphabet back", append_bytes_of(byte_level(all), back) && back == all ? "" : "other bytes");
  report.check("what is not in the alphabet", append_bytes_of("a\u2581", back) || back != all ? "taken" : "");
}

inline void regex_cases(Report& report) {
  check_equal(report, "an expression as it is", to_pcre2("(?i:'s|'t)|a{1,3}\\r[^b\\n-]++"), "(?i:'s|'t)|a{1,3}\\r[^b\\n-]++");
  check_equal(report, "spaces", to_pcre2("\\s[\\s]"), "[\\p{Z}\\x{9}-\\x{d}\\x{85}][\\p{Z}\\x{9}-\\x{d}\\x{85}]");
  for (const char* same : {"[-\\r]", "(?i:'s|'t|'re)\u2019", "(?i:a)\u00DFss|(?:ss)", "(?i)s|t", "[a\\-z]"})
    check_equal(report, "an expression as it is", to_pcre2(same), same);
  check_equal(report, "a hyphen behind a range", to_pcre2("[a-z-\\r]"), "[a-z\\-\\r]");
  check_equal(report, "a hyphen behind a set", to_pcre2("[\\h-]"), "[0-9A-Fa-f-]");
  check_equal(report, "a category", to_pcre2("\\p{Sc}\\P{^Sc}"), "[\\p{Sc}][\\p{Sc}]");
  for (const char* bad : {"\\p{Greek}",   "\\p{L",           "\\X",      "\\",        "[\\W]",
                          "[[a]]",        "[a&&b]",          "[]a]",     "(?#a)",     "(*FAIL)",
                          "a{,2}",        "a{2}?",           "[\\s-x]",  "[a-\\d]",   "[+-\\p{L}]",
                          "(?i)\\p{Lu}",  "(?i:[\\p{Ll}])",  "(?i)mass", "(?i:a|Fi)", "(?i)\\x{73}t",
                          "(?i)[\u00DF]", "(?i)stra\\u00dfe"})
    check_error(report, text("the expression ", bad), "is not known", [&] { to_pcre2(bad); });
  if (!Regex::supported()) {
    check_error(report, "an expression without PCRE2", "needs PCRE2", [] { Regex("a"); });
    return;
  }
  const auto found = [](const char* pattern, const char* text) {
    std::vector<Match> matches;
    Regex(pattern).find_all(text, matches);
    std::string out;
    for (const Match& match : matches) out += mobizo::trainer::message(match.begin, '-', match.end, ' ');
    return out;
  };
  check_equal(report, "matches", found("\\p{L}+|\\s+(?!\\S)|\\s+", "ab  \u00E9"), "0-2 2-3 3-4 4-6 ");
  check_equal(report, "matches of nothing", found("b*", "a\u00E9bb"), "0-0 1-1 3-5 ");
}

// What all may use at once.
inline void shared_by_threads(Report& report, const Tokenizer& tokenizer) {
  const std::string text = "aab <end> \u00E9 b";
  const std::vector<int64_t> ids = tokenizer.encode(text, true);
  const std::string back = tokenizer.decode(ids, false);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (int& mine : wrong)
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) mine += tokenizer.encode(text, true) != ids || tokenizer.decode(ids, false) != back;
    });
  for (std::thread& thread : threads) thread.join();
  report.check("ids and texts in four threads", wrong == std::vector<int>(4, 0) ? "" : "others than in one");
}

inline void tokenizer_cases(Report& report) {
  unicode_cases(report);
  regex_cases(report);
  const Tokenizer tokenizer(parse_json(R"({
    "model": {"type": "BPE", "byte_fallback": true, "unk_token": "?", "fuse_unk": true,
              "vocab": {"?": 0, "a": 1, "b": 2, "ab": 3, "aab": 4, "<0xC3>": 5, "<0xA9>": 6, "\u2581": 7},
              "merges": [["a", "b"], ["a", "ab"]]},
    "added_tokens": [{"id": 8, "content": "<end>", "special": true, "normalized": false, "single_word": false,
                      "lstrip": true, "rstrip": false}],
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "<end>", "type_id": 0}}], "special_tokens": {"<end>": {"ids": [8]}}},
    "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}]}
  })"));
  const auto ids = [&](const char* text) { return Json::list(tokenizer.encode(text, false)).dump(); };
  check_equal(report, "ids", ids("aab ab"), "[4,7,3]");
  check_equal(report, "ids of bytes and of what is unknown", ids("a\u00E9xya"), "[1,5,6,0,1]");
  check_equal(report, "ids around an added token", ids("ab  <end> b"), "[3,8,7,2]");
  check_equal(report, "ids with the template", Json::list(tokenizer.encode("a", true)).dump(), "[1,8]");
  check_equal(report, "a text of ids", tokenizer.decode({4, 7, 5, 6, 8, 99}, true), "aab \u00E9");
  check_equal(report, "a text of half a character", tokenizer.decode({5, 1, 5}, true), "\uFFFDa\uFFFD");
  StreamDecoder stream(tokenizer, true);
  check_equal(report, "half a character is held back", stream.push(5), "");
  check_equal(report, "and a whole one, that more may follow", stream.push(6), "");
  check_equal(report, "until something else does", stream.push(1), "\u00E9a");
  const std::vector<int64_t> many = tokenizer.encode(std::string(100'000, 'a') + "b", false);
  report.check("many of one letter", many.size() == 99'999 && many.back() == 4 ? "" : text(many.size(), " ids"));
  check_error(report, "a text that is not UTF-8", "not UTF-8 at byte 2", [&] { tokenizer.encode("ab\xC3", false); });
  shared_by_threads(report, tokenizer);
}

}  // namespace mobizo::trainer
