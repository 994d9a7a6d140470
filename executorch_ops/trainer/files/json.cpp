#include "json.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <locale>
#include <sstream>

#include "errors.h"
#include "json_numbers.h"

namespace mobizo::trainer {
namespace {

// The fewest digits that are read back as the same number.
std::string from_double(double value) {
  std::string text;
  for (int digits : {15, 16, 17}) {
    std::ostringstream stream;
    stream.imbue(std::locale::classic());
    stream.precision(digits);
    stream << value;
    text = stream.str();
    double back = 0;
    if (to_double(text, back) && back == value) break;
  }
  return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
}

void write_string(const std::string& text, std::string& out) {
  out += '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
      out += escape;
    } else {
      out += c;
    }
  }
  out += '"';
}

}  // namespace

const char* Json::type() const {
  constexpr const char* kNames[] = {"null", "a boolean", "a whole number", "a number", "a string", "a list", "an object"};
  return kNames[std::min<size_t>(value_.index(), 6)];
}

bool Json::as_bool() const {
  if (const auto* value = std::get_if<bool>(&value_)) return *value;
  fail("expected a boolean, got ", type());
}

int64_t Json::as_int() const {
  if (const auto* value = std::get_if<int64_t>(&value_)) return *value;
  fail("expected a whole number, got ", type());
}

double Json::as_double() const {
  if (const auto* value = std::get_if<double>(&value_)) return *value;
  if (const auto* value = std::get_if<int64_t>(&value_)) return static_cast<double>(*value);
  fail("expected a number, got ", type());
}

const std::string& Json::as_string() const {
  if (const auto* value = std::get_if<std::string>(&value_)) return *value;
  fail("expected a string, got ", type());
}

const Json::Array& Json::as_array() const {
  if (const auto* value = std::get_if<Array>(&value_)) return *value;
  fail("expected a list, got ", type());
}

const Json::Object& Json::as_object() const {
  if (const auto* value = std::get_if<Object>(&value_)) return *value;
  fail("expected an object, got ", type());
}

std::vector<int64_t> Json::as_ints() const {
  std::vector<int64_t> values;
  for (const Json& value : as_array()) values.push_back(value.as_int());
  return values;
}

const Json* Json::find(std::string_view name) const {
  for (const Member& member : as_object())
    if (member.first == name) return &member.second;
  return nullptr;
}

const Json& Json::operator[](std::string_view name) const {
  const Json* value = find(name);
  if (value == nullptr) fail("'", name, "' is missing");
  return *value;
}

bool Json::operator==(const Json& other) const {
  const auto is_number = [](const Json& json) {
    return std::holds_alternative<int64_t>(json.value_) || std::holds_alternative<double>(json.value_);
  };
  if (value_.index() != other.value_.index() && is_number(*this) && is_number(other)) return as_double() == other.as_double();
  return value_ == other.value_;
}

std::string Json::dump() const {
  std::string out;
  write(out);
  return out;
}

void Json::write(std::string& out) const {
  if (is_null()) {
    out += "null";
  } else if (const auto* boolean = std::get_if<bool>(&value_)) {
    out += *boolean ? "true" : "false";
  } else if (const auto* whole = std::get_if<int64_t>(&value_)) {
    out += std::to_string(*whole);
  } else if (const auto* number = std::get_if<double>(&value_)) {
    out += std::isfinite(*number) ? from_double(*number) : "null";
  } else if (is_string()) {
    write_string(as_string(), out);
  } else if (const auto* array = std::get_if<Array>(&value_)) {
    const char* separator = "[";
    for (const Json& value : *array) {
      out += separator;
      value.write(out);
      separator = ",";
    }
    out += array->empty() ? "[]" : "]";
  } else {
    const char* separator = "{";
    for (const auto& [name, value] : as_object()) {
      out += separator;
      write_string(name, out);
      out += ':';
      value.write(out);
      separator = ",";
    }
    out += as_object().empty() ? "{}" : "}";
  }
}

}  // namespace mobizo::trainer
