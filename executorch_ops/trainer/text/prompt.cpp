#include "prompt.h"

#include <algorithm>
#include <cmath>

#include "../files/errors.h"
#include "python_json.h"
#include "strings.h"

namespace mobizo::trainer {
namespace {

constexpr const char* kText = "text";

const PromptDescription& prompt_of(const Description& description) {
  if (!description.texts || !description.texts->prompt)
    fail("the program takes no labelled texts: it was exported without a prompt");
  return *description.texts->prompt;
}

std::string_view value_of(std::string_view name, const std::string& text, const Columns& columns) {
  if (name == kText) return text;
  for (const auto& [column, value] : columns)
    if (column == name) return value;
  fail("template: expected only columns of the data in braces, got ", quoted(name));
}

std::string token_text(const Tokenizer& tokenizer, int64_t id) {
  const std::string* token = tokenizer.token(id);
  return token == nullptr ? message(id) : quoted(*token);
}

}  // namespace

std::vector<TemplatePart> parse_template(const std::string& text) {
  std::vector<TemplatePart> parts{{}};
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    if (c != '{' && c != '}') {
      parts.back().plain += c;
    } else if (at + 1 < text.size() && text[at + 1] == c) {
      parts.back().plain += c;
      ++at;
    } else {
      const size_t end = text.find('}', at);
      const std::string name = c == '{' && end != std::string::npos ? text.substr(at + 1, end - at - 1) : "";
      if (name.empty() || name.find_first_of("{:!") != std::string::npos)
        fail("template: expected names in braces, and a brace to be shown doubled, got ", quoted(text));
      parts.back().name = name;
      parts.emplace_back();
      at = end;
    }
  }
  if (parts.back().plain.empty() && parts.size() > 1) parts.pop_back();
  return parts;
}

PromptEncoder::PromptEncoder(const Description& description, const TokenizerFile& tokenizer, int64_t max_length)
    : prompt_(prompt_of(description)),
      file_(tokenizer),
      candidates_(*description.candidate_tokens),
      max_length_(max_length),
      parts_(parse_template(prompt_.template_text)) {
  size_t texts = 0;
  for (const TemplatePart& part : parts_) {
    if (!part.name) continue;
    if (*part.name == kText) {
      ++texts;
    } else if (std::find(columns_.begin(), columns_.end(), *part.name) == columns_.end()) {
      columns_.push_back(*part.name);
    }
  }
  if (texts != 1) fail("template: expected {text} exactly once, got ", quoted(prompt_.template_text));
  Columns probes;
  for (const std::string& column : columns_) probes.emplace_back(column, kText);
  const std::string probe = fill(kText, probes);
  for (size_t i = 0; i < candidates_.size(); ++i) {
    const int64_t token = word_token(probe, prompt_.words[i]);
    if (token != candidates_[i])
      fail("verbalizer: the program has the token ", candidates_[i], " for the word ", quoted(prompt_.words[i]),
           ", and the tokenizer ", token);
  }
  const auto shortest = static_cast<int64_t>(tokens(probe).size()) + 1;
  if (shortest > max_length) fail("max_length: expected at least ", shortest, ", the template and two words, got ", max_length);
}

void PromptEncoder::check_labels(const std::vector<std::string>& labels) const {
  std::vector<std::string> own = prompt_.labels;
  std::sort(own.begin(), own.end());
  if (own != labels)
    fail("verbalizer: expected one word for each label of the data (", listed(labels), "), got ", listed(prompt_.labels));
}

Row PromptEncoder::encode(const Example& example) const {
  const auto found = std::find(prompt_.labels.begin(), prompt_.labels.end(), example.label);
  const auto label = static_cast<size_t>(found - prompt_.labels.begin());
  if (label == prompt_.labels.size()) {
    std::string labels;
    for (const std::string& one : prompt_.labels) labels += (labels.empty() ? "" : ", ") + quoted(one);
    fail("verbalizer: expected a word for the label ", quoted(example.label), ", got words for ", labels, " only");
  }
  if (stripped(example.text).empty()) fail("data: empty text with the label ", quoted(example.label));
  Prompt prompt{fill(example.text, example.columns), {}};
  prompt.tokens = tokens(prompt.text);
  if (static_cast<int64_t>(prompt.tokens.size()) >= max_length_) prompt = truncated(example, prompt.tokens.size());
  // Behind a slot the word touches what fills it, and each example is a new case.
  if (parts_.back().name) word_token(prompt.text, prompt_.words[label]);
  prompt.tokens.push_back(candidates_[label]);
  return {std::move(prompt.tokens), static_cast<int64_t>(label), 1};
}

// The longest start of the text that leaves room for all else. `count`: tokens of the whole prompt.
PromptEncoder::Prompt PromptEncoder::truncated(const Example& example, size_t count) const {
  const std::string& text = example.text;
  int64_t fits = -1, too_long = static_cast<int64_t>(characters(text));
  auto end = static_cast<int64_t>(likely_end(example, count));
  Prompt found;
  for (int64_t step = 1; too_long - fits > 1; step *= 2) {
    if (end <= fits || end >= too_long) end = (fits + too_long) >> 1;  // a floor, of a sum that may be -1 + 1
    const std::string start(stripped_right(std::string_view(text).substr(0, bytes_of(text, static_cast<size_t>(end)))));
    Prompt prompt{fill(start, example.columns), {}};
    prompt.tokens = tokens(prompt.text);
    if (static_cast<int64_t>(prompt.tokens.size()) < max_length_) {
      fits = end;
      found = std::move(prompt);
      end += step;
    } else {
      too_long = end;
      end -= step;
    }
  }
  if (fits < 0) {
    Json::Object columns;
    for (const auto& [name, value] : example.columns) columns.emplace_back(name, value);
    fail("max_length: expected at least ", tokens(fill("", example.columns)).size() + 1,
         " for an example whose other columns are ", python_repr(std::move(columns)), ", got ", max_length_);
  }
  return found;
}

// Where the text would have to end if the tokens before its end did not depend on what follows.
size_t PromptEncoder::likely_end(const Example& example, size_t count) const {
  const std::string& text = example.text;
  const size_t length = characters(text), too_many = count + 1 - static_cast<size_t>(max_length_);
  const auto extents = file_.extents(fill(text, example.columns));
  if (!extents)
    return length - static_cast<size_t>(std::nearbyint(static_cast<double>(too_many) / static_cast<double>(count) *
                                                       static_cast<double>(length)));
  size_t first = 0;  // where the text begins
  for (const TemplatePart& part : parts_) {
    first += characters(part.plain);
    if (part.name && *part.name == kText) break;
    if (part.name) first += characters(value_of(*part.name, text, example.columns));
  }
  std::vector<size_t> starts;
  for (const auto& [begin, end] : *extents)
    if (first <= begin && begin < end && end <= first + length) starts.push_back(begin - first);
  if (too_many > starts.size()) return 0;
  const size_t dropped =
      starts[starts.size() - too_many];  // the first token to drop may begin with a space, which costs nothing
  const std::string_view rest = std::string_view(text).substr(bytes_of(text, dropped));
  return dropped + characters(rest) - characters(stripped_left(rest));
}

std::string PromptEncoder::fill(const std::string& text, const Columns& columns) const {
  std::string filled;
  for (const TemplatePart& part : parts_) {
    filled += part.plain;
    if (part.name) filled += value_of(*part.name, text, columns);
  }
  return filled;
}

// The single token that a word adds behind a prompt: both are tokenised together.
int64_t PromptEncoder::word_token(const std::string& prompt, const std::string& word) const {
  const std::vector<int64_t> before = tokens(prompt), after = tokens(prompt + word);
  if (after.size() != before.size() + 1 || !std::equal(before.begin(), before.end(), after.begin())) {
    const auto kept = std::mismatch(
        before.begin(), before.begin() + static_cast<std::ptrdiff_t>(std::min(before.size(), after.size())), after.begin());
    const auto names = [&](auto begin, auto end) {
      std::string list = "[";
      for (auto it = begin; it != end; ++it) list += (it == begin ? "" : ", ") + token_text(file_.tokenizer(), *it);
      return list + "]";
    };
    const size_t shown = characters(prompt) - std::min<size_t>(characters(prompt), 40);
    fail("verbalizer: the word ", quoted(word), " must be one token behind the prompt ",
         quoted(std::string_view(prompt).substr(bytes_of(prompt, shown))), ", but it adds ", names(kept.second, after.end()),
         kept.first == before.end() ? "" : " in place of " + names(kept.first, before.end()));
  }
  return after.back();
}

}  // namespace mobizo::trainer
