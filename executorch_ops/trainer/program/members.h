// How the JSON of a description is read: every member asked for, and no other there.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "../files/errors.h"
#include "../files/json.h"

namespace mobizo::trainer {

// A size of a tensor, or what is compared with one: ExecuTorch's sizes are int32.
constexpr int64_t kMostSize = std::numeric_limits<int32_t>::max();

inline int64_t checked_size(const Json& value, int64_t least) {
  const int64_t size = value.as_int();
  if (size < least) fail("expected at least ", least, ", got ", size);
  if (size > kMostSize) fail("expected at most ", kMostSize, ", got ", size);
  return size;
}

// An object whose members are asked for one by one; in the end, all of them have to have been.
class Members {
 public:
  explicit Members(const Json& json) : json_(json) {}

  // The member called `name`, converted by `convert`, whose errors get the name in front.
  template <typename Convert>
  auto get(const std::string& name, Convert convert) {
    const Json& value = json_[name];
    asked_.insert(name);
    return blaming(name, [&] { return convert(value); });
  }
  std::string text(const std::string& name) {
    return get(name, [](const Json& value) { return value.as_string(); });
  }
  int64_t size(const std::string& name, int64_t least) {
    return get(name, [&](const Json& value) { return checked_size(value, least); });
  }
  std::vector<int64_t> shape(const std::string& name) {
    return get(name, [](const Json& value) {
      const Json::Array& sizes = value.as_array();
      if (sizes.size() != 2) fail("expected two sizes, got ", value.dump());
      return std::vector<int64_t>{checked_size(sizes[0], 1), checked_size(sizes[1], 1)};
    });
  }
  std::optional<std::vector<int64_t>> tokens(const std::string& name) {
    return get(name, [](const Json& value) {
      return value.is_null() ? std::nullopt : std::optional<std::vector<int64_t>>(value.as_ints());
    });
  }
  void end() const {
    for (const auto& [name, value] : json_.as_object())
      if (asked_.count(name) == 0) fail("'", name, "' is unknown");
  }

 private:
  const Json& json_;
  std::set<std::string> asked_;
};

}  // namespace mobizo::trainer
