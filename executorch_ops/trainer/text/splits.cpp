#include "splits.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>
#include <tuple>

#include "../files/blake2b.h"
#include "../files/errors.h"
#include "strings.h"

namespace mobizo::trainer {
namespace {

constexpr std::string_view kLabelSalt = "mobizo split 1", kAnswerSalt = "mobizo answers 1";
constexpr double kTestShare = 0.2, kValidationShare = 0.1;

using Key = std::array<uint8_t, 16>;
using ByLabel = std::map<std::string, std::vector<Example>>;

Key split_key(const std::string& text, std::string_view salt) {
  Blake2b hash(salt);
  hash.update(text.data(), text.size());
  return hash.bytes();
}

// At least one; as Python's round, which goes to the even one of two.
size_t quota(double share, size_t rows) {
  return static_cast<size_t>(std::max(1.0, std::nearbyint(share * static_cast<double>(rows))));
}

// The first of each text and its columns.
std::vector<Example> without_repeats(const std::vector<Example>& rows, std::vector<std::string>& warnings) {
  std::map<std::pair<std::string, Columns>, size_t> first;
  std::set<std::string> contradicted;
  std::string one;
  std::vector<Example> kept;
  for (const Example& row : rows) {
    const auto [found, fresh] = first.emplace(std::make_pair(row.text, row.columns), kept.size());
    if (fresh) {
      kept.push_back(row);
    } else if (kept[found->second].label != row.label) {
      if (contradicted.empty()) one = row.text;
      contradicted.insert(row.text);
    }
  }
  if (!contradicted.empty())
    warnings.push_back(message("data: ", contradicted.size(), " of ", kept.size(),
                               " texts have more than one label, one being ", shortened(one),
                               "; the label of the first row counts"));
  return kept;
}

// Test, validation and the rest by label, filled in turn with rows in the order of the hash. Rows of one text go to the first
// part that lacks rows of any of their labels.
std::array<ByLabel, 3> fill_in_turn(const std::vector<Example>& rows, const std::map<std::string, size_t>& sizes) {
  std::map<std::string, std::vector<const Example*>> texts;
  for (const Example& row : rows) texts[row.text].push_back(&row);
  std::vector<std::pair<Key, std::vector<const Example*>*>> order;
  for (auto& [text, together] : texts) order.emplace_back(split_key(text, kLabelSalt), &together);
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::array<ByLabel, 3> parts;
  const double shares[] = {kTestShare, kValidationShare};
  for (const auto& [key, together] : order) {
    std::stable_sort(together->begin(), together->end(),
                     [](const Example* a, const Example* b) { return a->columns < b->columns; });
    size_t part = 0;
    const auto lacks = [&](const Example* row) {
      return parts[part][row->label].size() < quota(shares[part], sizes.at(row->label));
    };
    while (part < 2 && std::none_of(together->begin(), together->end(), lacks)) ++part;
    for (const Example* row : *together) parts[part][row->label].push_back(*row);
  }
  return parts;
}

// Ordered so that every prefix holds the labels in about the same proportions.
std::vector<Example> interleaved(const ByLabel& part) {
  std::vector<std::pair<double, const Example*>> placed;
  for (const auto& [label, rows] : part)
    for (size_t i = 0; i < rows.size(); ++i)
      placed.emplace_back((static_cast<double>(i) + 0.5) / static_cast<double>(rows.size()), &rows[i]);
  std::sort(placed.begin(), placed.end(), [](const auto& a, const auto& b) {
    return std::tie(a.first, a.second->label, a.second->text, a.second->columns) <
           std::tie(b.first, b.second->label, b.second->text, b.second->columns);
  });
  std::vector<Example> rows;
  for (const auto& [place, row] : placed) rows.push_back(*row);
  return rows;
}

// What the user asks, in turn.
using Questions = std::vector<std::string>;

Questions questions_of(const Conversation& row) {
  Questions questions;
  for (const Message& message : row.messages)
    if (message.role == "user") questions.push_back(message.content);
  return questions;
}

struct Asked {
  Questions questions;
  Conversation row;
};

// Rows by the fewest of their first questions that make groups of `most` at most, or by all of them.
std::map<Questions, std::vector<Conversation>> grouped(std::vector<Asked> rows, size_t most) {
  std::map<Questions, std::vector<Conversation>> found;
  for (size_t asked = 1; !rows.empty(); ++asked) {
    std::map<Questions, std::vector<Asked>> finer;
    for (Asked& row : rows) {
      const size_t count = std::min(asked, row.questions.size());
      finer[{row.questions.begin(), row.questions.begin() + static_cast<std::ptrdiff_t>(count)}].push_back(std::move(row));
    }
    rows.clear();
    for (auto& [opening, group] : finer) {
      const bool more = std::any_of(group.begin(), group.end(), [&](const Asked& row) { return row.questions.size() > asked; });
      for (Asked& row : group)
        if (more && group.size() > most)
          rows.push_back(std::move(row));
        else
          found[opening].push_back(std::move(row.row));
    }
  }
  return found;
}

Key opening_key(const Questions& opening) {
  std::string text;
  for (const std::string& question : opening) {
    if (!text.empty()) text += '\0';
    text += "user";
    text += '\0';
    text += question;
  }
  return split_key(text, kAnswerSalt);
}

}  // namespace

Splits<Example> split_examples(const std::vector<Example>& given, std::vector<std::string>& warnings) {
  const std::vector<Example> rows = without_repeats(given, warnings);
  std::map<std::string, size_t> sizes;
  std::vector<std::string> labels;  // as they come
  for (const Example& row : rows)
    if (++sizes[row.label] == 1) labels.push_back(row.label);
  if (labels.size() < 2) fail("data: expected at least two labels, got ", labels.size(), " (", listed(labels), ")");
  std::array<ByLabel, 3> parts = fill_in_turn(rows, sizes);
  for (const std::string& label : labels)
    for (ByLabel& part : parts)
      if (part[label].empty())
        fail("data: expected at least 3 texts of each label (to train, to validate and to test), got ", sizes[label], " of ",
             quoted(label));
  return {interleaved(parts[2]), interleaved(parts[1]), interleaved(parts[0])};
}

Splits<Conversation> split_conversations(const std::vector<Conversation>& rows) {
  std::vector<Asked> different;
  std::set<std::vector<Message>> seen;
  for (const Conversation& row : rows)
    if (seen.insert(row.messages).second) different.push_back({questions_of(row), row});
  const size_t tenth = quota(kValidationShare, seen.size());
  std::map<Questions, std::vector<Conversation>> together = grouped(std::move(different), tenth);
  if (together.size() < 3)
    fail("data: expected at least 3 different questions (to train, to validate and to test), got ", together.size());
  std::vector<std::pair<Key, std::vector<Conversation>*>> order;
  for (auto& [opening, group] : together) order.emplace_back(opening_key(opening), &group);
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::array<std::vector<Conversation>, 3> parts;
  const size_t quotas[] = {quota(kTestShare, seen.size()), tenth, seen.size()};
  for (const auto& [key, group] : order) {
    size_t part = 0;
    while (parts[part].size() >= quotas[part]) ++part;
    std::stable_sort(group->begin(), group->end(),
                     [](const Conversation& a, const Conversation& b) { return a.messages < b.messages; });
    parts[part].insert(parts[part].end(), group->begin(), group->end());
  }
  if (parts[2].empty() || parts[1].empty())
    fail("data: most rows begin with one question: none are left to train or to validate on");
  return {parts[2], parts[1], parts[0]};
}

std::vector<std::string> labels_of(const std::vector<Example>& rows) {
  std::set<std::string> labels;
  for (const Example& row : rows) labels.insert(row.label);
  return {labels.begin(), labels.end()};
}

}  // namespace mobizo::trainer
