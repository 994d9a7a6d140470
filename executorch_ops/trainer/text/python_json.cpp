#include "python_json.h"

#include <algorithm>
#include <cstdio>

#include "../files/utf8.h"
#include "strings.h"

namespace mobizo::trainer {
namespace {

void append_unit(uint32_t unit, std::string& out) {
  char escape[8];
  std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(unit));
  out += escape;
}

void append_string(std::string_view text, bool ascii, std::string& out) {
  constexpr std::string_view kNamed = "\"\\\n\r\t\f\b", kNames = "\"\\nrtfb";
  out += '"';
  for (size_t at = 0; at < text.size();) {
    const CodePoint code = code_point_at(text, at);
    const size_t which = kNamed.find(text[at]);
    if (which != std::string_view::npos) {
      out += '\\';
      out += kNames[which];
    } else if (code.value >= 0x20 && (!ascii || code.value <= 0x7F)) {
      out += text.substr(at, code.length);
    } else if (code.value < 0x10000) {
      append_unit(code.value, out);
    } else {
      append_unit(0xD800 + ((code.value - 0x10000) >> 10), out);
      append_unit(0xDC00 + ((code.value - 0x10000) & 0x3FF), out);
    }
    at += code.length;
  }
  out += '"';
}

void append(const Json& json, const JsonStyle& style, std::string& out) {
  const std::string_view comma = style.spaced ? ", " : ",", colon = style.spaced ? ": " : ":";
  switch (json.kind()) {
    case Json::Kind::kNumber:
      out += float_text(json.as_double());
      return;
    case Json::Kind::kString:
      return append_string(json.as_string(), style.ascii, out);
    case Json::Kind::kArray: {
      out += '[';
      bool first = true;
      for (const Json& item : json.as_array()) {
        if (!first) out += comma;
        first = false;
        append(item, style, out);
      }
      out += ']';
      return;
    }
    case Json::Kind::kObject: {
      std::vector<const Json::Member*> members;
      for (const Json::Member& member : json.as_object()) members.push_back(&member);
      if (style.sorted)
        std::sort(members.begin(), members.end(), [](const auto* a, const auto* b) { return a->first < b->first; });
      out += '{';
      bool first = true;
      for (const Json::Member* member : members) {
        if (!first) out += comma;
        first = false;
        append_string(member->first, style.ascii, out);
        out += colon;
        append(member->second, style, out);
      }
      out += '}';
      return;
    }
    default:
      out += json.dump();
  }
}

}  // namespace

std::string python_json(const Json& json, JsonStyle style) {
  std::string out;
  append(json, style, out);
  return out;
}

std::string python_repr(const Json& json) {
  switch (json.kind()) {
    case Json::Kind::kNull:
      return "None";
    case Json::Kind::kBoolean:
      return json.as_bool() ? "True" : "False";
    case Json::Kind::kString:
      return quoted(json.as_string());
    case Json::Kind::kArray: {
      std::string out = "[";
      for (const Json& item : json.as_array()) out += (out.size() > 1 ? ", " : "") + python_repr(item);
      return out + "]";
    }
    case Json::Kind::kObject: {
      std::string out = "{";
      for (const auto& [name, value] : json.as_object())
        out += (out.size() > 1 ? ", " : "") + quoted(name) + ": " + python_repr(value);
      return out + "}";
    }
    default:
      return python_json(json, {});
  }
}

bool is_object(const Json& json) { return json.kind() == Json::Kind::kObject; }
bool is_array(const Json& json) { return json.kind() == Json::Kind::kArray; }

const char* kind_of(const Json& json) {
  switch (json.kind()) {
    case Json::Kind::kArray:
      return "a list";
    case Json::Kind::kObject:
      return "an object";
    case Json::Kind::kBoolean:
      return "true or false";
    case Json::Kind::kWhole:
    case Json::Kind::kNumber:
      return "a number";
    default:
      return "a string";
  }
}

}  // namespace mobizo::trainer
