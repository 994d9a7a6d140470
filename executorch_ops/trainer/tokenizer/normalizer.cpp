#include "normalizer.h"

#include <memory>

#include "byte_level.h"
#include "parts.h"
#include "unicode.h"

namespace mobizo::trainer {
namespace {

using Step = std::function<void(std::string&, bool&)>;

Step prepend(const Json& json) {
  return [start = json["prepend"].as_string()](std::string& text, bool&) { text.insert(0, start); };
}

Step replace(const Json& json) {
  const auto replacement = std::make_shared<Replacement>(json);
  return [replacement](std::string& text, bool& at_start) {
    std::vector<Match> matches;
    replacement->pattern().find_all(text, matches);
    if (matches.empty()) return;
    if (replacement->content().empty() && matches[0].begin == 0 && matches[0].end > 0) at_start = false;
    text = replacement->apply(text, matches);
  };
}

Step step_of(const Json& json) {
  const std::string& kind = json["type"].as_string();
  if (kind == "Prepend") return prepend(json);
  if (kind == "Replace") return replace(json);
  if (kind == "NFC") return [](std::string& text, bool&) { text = to_nfc(text); };
  if (kind == "NFD") return [](std::string& text, bool&) { text = to_nfd(text); };
  if (kind == "ByteLevel") return [](std::string& text, bool&) { text = byte_level(text); };
  unknown_kind(kind, "Prepend, Replace, NFC, NFD, ByteLevel or Sequence");
}

}  // namespace

Normalizer::Normalizer(const Json& json) {
  for_each_part(json, "normalizers", [&](const Json& part) {
    steps_.push_back(step_of(part));
    const std::string& kind = part["type"].as_string();
    inserts_ = inserts_ || kind == "Prepend" || (kind == "Replace" && part["pattern"].find("Regex") != nullptr);
  });
}

void Normalizer::apply(std::string& text, bool& at_start) const {
  for (const auto& step : steps_) {
    const size_t before = text.size();
    if (before > 0) step(text, at_start);
    check_growth(before, text.size());
  }
}

}  // namespace mobizo::trainer
