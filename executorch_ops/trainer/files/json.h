// JSON (RFC 8259), read strictly and written as compactly as Python's json reads it back.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace mobizo::trainer {

// A value. Whole numbers are exact int64; members of an object keep their order. What is asked for and is not there, or is of
// another type, is an Error that names it.
class Json {
 public:
  using Array = std::vector<Json>;
  using Member = std::pair<std::string, Json>;
  using Object = std::vector<Member>;

  Json() : value_(nullptr) {}
  Json(std::nullptr_t) : value_(nullptr) {}
  Json(bool value) : value_(value) {}
  Json(int value) : value_(int64_t{value}) {}
  Json(int64_t value) : value_(value) {}
  Json(double value) : value_(value) {}  // written as null if it is not finite
  Json(const char* value) : value_(std::string(value)) {}
  Json(std::string value) : value_(std::move(value)) {}
  Json(Array value) : value_(std::move(value)) {}
  Json(Object value) : value_(std::move(value)) {}
  template <typename T>
  static Json list(const std::vector<T>& values) {
    return Array(values.begin(), values.end());
  }

  enum class Kind { kNull, kBoolean, kWhole, kNumber, kString, kArray, kObject };
  Kind kind() const { return static_cast<Kind>(value_.index()); }
  bool is_null() const { return std::holds_alternative<std::nullptr_t>(value_); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool as_bool() const;
  int64_t as_int() const;
  double as_double() const;  // of a whole number, too
  const std::string& as_string() const;
  const Array& as_array() const;
  const Object& as_object() const;
  std::vector<int64_t> as_ints() const;

  const Json* find(std::string_view name) const;  // nullptr if there is no such member
  const Json& operator[](std::string_view name) const;

  // Numbers are equal by value: 1 is 1.0.
  bool operator==(const Json& other) const;
  bool operator!=(const Json& other) const { return !(*this == other); }

  std::string dump() const;

 private:
  const char* type() const;
  void write(std::string& out) const;

  std::variant<std::nullptr_t, bool, int64_t, double, std::string, Array, Object> value_;
};

// Throws Error with the byte at which `text` is not JSON in UTF-8. A name that comes twice in an object, more than 64 levels,
// half a pair of surrogates and whole numbers beyond int64 are refused, too. mobizo_kernels/files/strict_json.py refuses the
// same.
Json parse_json(std::string_view text);

}  // namespace mobizo::trainer
