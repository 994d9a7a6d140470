// Files with a few bytes changed, ids that no tokenizer gave, and logits of any kind: they end in a result or in an Error.
// tests/fuzz tries more, under sanitizers.
#pragma once

#include <cmath>
#include <limits>

#include "../../executorch_ops/trainer/loop/sampling.h"
#include "../../executorch_ops/trainer/text/csv.h"
#include "../../executorch_ops/trainer/text/python_random.h"
#include "../../executorch_ops/trainer/text/rows.h"
#include "../../executorch_ops/trainer/text/splits.h"
#include "../../executorch_ops/trainer/text/strings.h"
#include "../../executorch_ops/trainer/tokenizer/tokenizer.h"
#include "trainer_harness.h"

namespace mobizo::trainer {

// One of a few changes: a byte is another one, is gone, or comes twice; or the end is cut off.
inline std::string damaged(std::string bytes, PythonRandom& random) {
  static const std::string kTelling = "\"\\{}[],:\n\r \xC3\xA9\xF0\x80\xFF-0eu";
  for (uint64_t n = 1 + random.below(3); n > 0 && !bytes.empty(); --n) {
    const size_t at = random.below(bytes.size());
    switch (random.below(5)) {
      case 0:
        bytes[at] = static_cast<char>(random.below(256));
        break;
      case 1:
        bytes[at] = kTelling[random.below(kTelling.size())];
        break;
      case 2:
        bytes.erase(at, 1 + random.below(8));
        break;
      case 3:
        bytes.insert(at, bytes.substr(at, 1 + random.below(8)));
        break;
      default:
        bytes.resize(at);
    }
  }
  return bytes;
}

// How often `work` gives a result. It may end in an Error, and in nothing else.
inline void check_survives(Report& report, const std::string& name, const std::string& bytes, int tries,
                           const std::function<void(const std::string&, PythonRandom&)>& work) {
  PythonRandom random(11);
  int taken = 0;
  std::string other;
  for (int i = 0; i < tries && other.empty(); ++i) {
    const std::string changed = i == 0 ? bytes : damaged(bytes, random);
    try {
      work(changed, random);
      ++taken;
    } catch (const Error&) {
    } catch (const std::exception& error) {
      other = error.what();
    }
  }
  report.check(name, !other.empty() ? other : taken == 0 ? "nothing was taken" : "");
}

inline void damage_cases(Report& report) {
  const std::string definition = R"({"model": {"type": "BPE", "byte_fallback": true, "unk_token": "?", "fuse_unk": true,
    "vocab": {"?": 0, "a": 1, "b": 2, "ab": 3, "<0xC3>": 4, "<0xA9>": 5, "\u2581": 6}, "merges": [["a", "b"]]},
    "added_tokens": [{"id": 7, "content": "<end>", "special": true, "normalized": false, "single_word": false, "lstrip": true,
    "rstrip": false}], "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Replace", "pattern":
    {"String": " "}, "content": "\u2581"}]}, "pre_tokenizer": {"type": "Punctuation", "behavior": "Isolated"},
    "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken":
    {"id": "<end>", "type_id": 0}}], "special_tokens": {"<end>": {"ids": [7]}}}, "decoder": {"type": "Sequence", "decoders":
    [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]}})";
  const std::string text =
      "ab, \xC3\xA9"
      "a <end> \xF0\x9F\x98\x80 aab\n";
  const auto use = [&](const Tokenizer& tokenizer, const std::string& words, PythonRandom& random) {
    std::vector<int64_t> ids = tokenizer.encode(words, true);
    for (int i = 0; i < 4; ++i) ids.push_back(static_cast<int64_t>(random.below(40)) - 9);
    tokenizer.decode(ids, false);
    StreamDecoder stream(tokenizer, true);
    for (const int64_t id : ids) stream.push(id);
    stream.finish();
  };
  check_survives(report, "tokenizers that are damaged", definition, 3000,
                 [&](const std::string& bytes, PythonRandom& random) { use(Tokenizer(parse_json(bytes)), text, random); });
  const Tokenizer whole(parse_json(definition));
  check_survives(report, "texts that are damaged", text, 3000,
                 [&](const std::string& bytes, PythonRandom& random) { use(whole, bytes, random); });
  check_survives(report, "cells that are damaged", "a,\"b \"\"c\"\"\"\r\n\"d\ne\",f\n", 3000,
                 [](const std::string& bytes, PythonRandom&) {
                   CsvReader reader(bytes);
                   while (!reader.done()) reader.next();
                 });
  const Scratch scratch;
  std::string rows;
  for (int n = 0; n < 4; ++n)
    rows += mobizo::trainer::message(
        "{\"messages\": [{\"role\": \"system\", \"content\": \"be \\u00e9\"}, {\"role\": \"user\", ", "\"content\": \"", n,
        "?\"}, {\"role\": \"assistant\", \"content\": \"so\"}]}\n", "{\"prompt\": \"p", n, "\", \"response\": \"\xC3\xA9\"}\n");
  check_survives(report, "conversations that are damaged", rows, 400, [&](const std::string& bytes, PythonRandom&) {
    split_conversations(read_conversations(scratch.write("rows.jsonl", bytes)));
  });

  PythonRandom random(5);
  std::string wrong;
  for (int i = 0; i < 2000; ++i) {
    std::vector<float> logits;
    for (uint64_t n = 1 + random.below(9); n > 0; --n) {
      constexpr float kOdd[] = {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(), 3e38f, -3e38f,
                                0};
      logits.push_back(random.below(3) == 0 ? kOdd[random.below(5)] : static_cast<float>(random.below(100)) / 10);
    }
    const Sampling sampling{random.below(2) == 0 ? 0.0 : 0.01 + static_cast<double>(random.below(300)) / 100,
                            static_cast<int64_t>(random.below(12)), 0.05 + static_cast<double>(random.below(95)) / 100, i};
    try {
      const int64_t token = choose(logits, sampling, uniform_of(i, 0));
      if (token < 0 || token >= static_cast<int64_t>(logits.size())) wrong = mobizo::trainer::message("the token ", token);
    } catch (const Error&) {  // of logits that are not finite
    }
  }
  report.check("tokens of any logits", wrong);
}

}  // namespace mobizo::trainer
