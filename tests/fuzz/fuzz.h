// What the targets share: a file to write the input to, promises that end the program, and mutations that leave most of a
// structure whole, so that what stands behind the first checks is reached.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../../executorch_ops/trainer/files/errors.h"
#include "../../executorch_ops/trainer/files/file.h"
#include "../../executorch_ops/trainer/files/json.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);

namespace mobizo::trainer::fuzz {

// A file in TMPDIR, of this process alone, that holds the input.
class InputFile {
 public:
  explicit InputFile(const std::string& name) {
    const char* parent = getenv("TMPDIR");
    directory_ = std::string(parent == nullptr ? "/tmp" : parent) + "/mobizo-fuzz-XXXXXX";
    if (mkdtemp(directory_.data()) == nullptr) std::abort();
    path_ = directory_ + "/" + name;
  }
  ~InputFile() {
    unlink(path_.c_str());
    rmdir(directory_.c_str());
  }
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& holding(std::string_view bytes) const {
    std::ofstream(path_, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return path_;
  }

 private:
  std::string directory_, path_;
};

// What a reader promises of input that it takes.
inline void promise(bool kept, const char* what) {
  if (kept) return;
  std::fprintf(stderr, "broken promise: %s\n", what);
  std::abort();
}

// Runs `work`, which may end in an Error and in nothing else that is thrown. Whether it did not.
template <typename Work>
bool taken(Work work) {
  try {
    work();
  } catch (const Error&) {
    return false;
  }
  return true;
}

// A whole file of the corpus.
inline std::string whole(const std::string& name) { return read_file(std::string(MOBIZO_FUZZ_CORPUS) + "/" + name); }

// The sound inputs that the target begins with, in one order everywhere.
inline const std::vector<std::string>& seeds() {
  static const std::vector<std::string> found = [] {
    const std::filesystem::path folder(MOBIZO_FUZZ_CORPUS "/" MOBIZO_FUZZ_TARGET);
    std::vector<std::string> names, contents;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) names.push_back(entry.path().string());
    std::sort(names.begin(), names.end());
    for (const std::string& name : names) contents.push_back(read_file(name));
    return contents;
  }();
  return found;
}

// Parts of an input that are separated by zero bytes; the last one may hold more of them.
inline std::vector<std::string> parts_of(const uint8_t* data, size_t size, size_t most) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  std::vector<std::string> parts;
  while (parts.size() + 1 < most && rest.find('\0') != std::string_view::npos) {
    parts.emplace_back(rest.substr(0, rest.find('\0')));
    rest.remove_prefix(parts.back().size() + 1);
  }
  parts.emplace_back(rest);
  return parts;
}

// What one mutation draws from.
class Mutator {
 public:
  explicit Mutator(unsigned seed) : engine_(seed) {}

  size_t below(size_t n) { return engine_() % n; }

  // By libFuzzer: bytes changed, moved, inserted, and what the program compared input with.
  void bytes(std::string& text) {
    const size_t size = text.size();
    text.resize(size + 64);
    text.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(text.data()), size, text.size()));
  }

  // JSON with a value replaced, left out, doubled or renamed; what is no JSON by its bytes.
  void json(std::string& text) {
    Json value;
    if (below(6) == 0 || !taken([&] { value = parse_json(text); })) return bytes(text);
    std::vector<const Json*> nodes;
    collect(value, nodes);
    target_ = nodes[below(nodes.size())];
    donor_ = nodes[below(nodes.size())];
    text = edited(value).dump();
  }

 private:
  static void collect(const Json& value, std::vector<const Json*>& nodes) {
    nodes.push_back(&value);
    if (value.kind() == Json::Kind::kArray)
      for (const Json& inner : value.as_array()) collect(inner, nodes);
    if (value.kind() == Json::Kind::kObject)
      for (const Json::Member& member : value.as_object()) collect(member.second, nodes);
  }

  Json replacement(const Json& value) {
    switch (below(4)) {
      case 0:
        return *donor_;
      case 1:
        return scalar();
      case 2:
        if (value.kind() == Json::Kind::kString) {
          std::string text = value.as_string();
          bytes(text);
          return text;
        }
        if (value.kind() == Json::Kind::kWhole)
          return static_cast<int64_t>(static_cast<uint64_t>(value.as_int()) + below(5) - 2);
        return Json::Array{value, *donor_};
      default:
        return below(2) == 0 ? Json(Json::Array{}) : Json(Json::Object{});
    }
  }

  Json scalar() {
    static const Json kScalars[] = {nullptr,
                                    true,
                                    false,
                                    0,
                                    1,
                                    -1,
                                    int64_t{1} << 31,
                                    INT64_MAX,
                                    INT64_MIN,
                                    0.5,
                                    1.0e308,
                                    -0.0,
                                    "",
                                    "a",
                                    "\xF0\x9F\x98\x80",
                                    "\xC3\xA9",
                                    255,
                                    65536,
                                    5.0e-324,
                                    "\xEF\xBF\xBD"};
    return kScalars[below(sizeof kScalars / sizeof *kScalars)];
  }

  Json edited(const Json& value) {
    if (&value == target_) return replacement(value);
    if (value.kind() == Json::Kind::kArray) {
      Json::Array array;
      for (const Json& inner : value.as_array()) {
        const size_t times = &inner == target_ ? below(3) : 1;  // left out, changed, or there twice
        if (times == 2) array.push_back(inner);
        if (times > 0) array.push_back(edited(inner));
      }
      return array;
    }
    if (value.kind() == Json::Kind::kObject) {
      Json::Object object;
      for (const auto& [name, inner] : value.as_object()) {
        const size_t what = &inner == target_ ? below(4) : 1;
        if (what == 0) continue;
        object.emplace_back(what == 3 ? other_name(value, name) : name, what == 3 ? inner : edited(inner));
      }
      return object;
    }
    return value;
  }

  std::string other_name(const Json& object, const std::string& name) {
    std::string other = name;
    bytes(other);
    return object.find(other) == nullptr ? other : name + "_";
  }

  std::mt19937 engine_;
  const Json *target_ = nullptr, *donor_ = nullptr;
};

// Changes an input a little; each target has its own.
void change(std::string& input, Mutator& mutator);

}  // namespace mobizo::trainer::fuzz

// A target is one source file, which includes this one.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
  std::string input(reinterpret_cast<const char*>(data), size);
  mobizo::trainer::fuzz::Mutator mutator(seed);
  // What libFuzzer keeps is mostly refused at once, each time in a new way: every other change is one of a sound input.
  const auto& sound = mobizo::trainer::fuzz::seeds();
  if (!sound.empty() && mutator.below(2) == 0) input = sound[mutator.below(sound.size())];
  mobizo::trainer::fuzz::change(input, mutator);
  if (input.size() > most) return LLVMFuzzerMutate(data, size, most);
  std::memcpy(data, input.data(), input.size());
  return input.size();
}
