#include "template.h"

#include "parts.h"

namespace mobizo::trainer {

Template::Template(const Json& json) {
  for_each_part(json, "processors", [&](const Json& part) { read(part); });
}

void Template::read(const Json& json) {
  const std::string& kind = json["type"].as_string();
  if (kind == "ByteLevel") return;  // is about offsets alone
  if (kind != "TemplateProcessing") unknown_kind(kind, "TemplateProcessing, ByteLevel or Sequence");
  std::vector<Item> items;
  bool has_text = false;
  const Json::Array& single = json["single"].as_array();
  for (size_t i = 0; i < single.size(); ++i)
    blaming(message("single[", i, "]"), [&] {
      if (const Json* sequence = single[i].find("Sequence")) {
        const std::string& which = (*sequence)["id"].as_string();
        if (which != "A" || has_text) fail("expected the text A, and once, got '", which, "'");
        has_text = true;
        items.push_back({true, {}});
      } else {
        const std::string& name = single[i]["SpecialToken"]["id"].as_string();
        const Json* token = json["special_tokens"].find(name);
        if (token == nullptr) fail("'", name, "' is not in 'special_tokens'");
        items.push_back({false, (*token)["ids"].as_ints()});
      }
    });
  templates_.push_back(std::move(items));
}

void Template::check(const std::function<bool(int64_t)>& is_token) const {
  for (const std::vector<Item>& items : templates_)
    for (const Item& item : items)
      for (const int64_t id : item.ids)
        if (!is_token(id)) fail("special_tokens: the vocabulary has no token ", id);
}

std::vector<int64_t> Template::apply(std::vector<int64_t> ids, bool add_special) const {
  for (const std::vector<Item>& items : templates_) {
    std::vector<int64_t> out;
    for (const Item& item : items) {
      const std::vector<int64_t>& more = item.text ? ids : item.ids;
      if (item.text || add_special) out.insert(out.end(), more.begin(), more.end());
    }
    ids = std::move(out);
  }
  return ids;
}

}  // namespace mobizo::trainer
