// Mutations of a safetensors file that keep its lengths and its checksum right.
#pragma once

#include "../../executorch_ops/trainer/files/safetensors.h"
#include "fuzz.h"

namespace mobizo::trainer::fuzz {

inline std::string joined(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + header + data;
}

// The checksum of the content in the place of the one that the file has, if the content is sound.
inline void mend_checksum(std::string& bytes) {
  static const InputFile file("sealed.safetensors");
  constexpr std::string_view kBefore = "its checksum is ", kBetween = ", that of its content ";
  try {
    SafetensorsFile{file.holding(bytes)};
  } catch (const Error& error) {
    const std::string_view sentence = error.what();
    const size_t there = sentence.find(kBefore), here = sentence.find(kBetween);
    if (there == std::string_view::npos || here == std::string_view::npos) return;
    const size_t begin = there + kBefore.size();
    const std::string wrong = "\"checksum\":\"" + std::string(sentence.substr(begin, here - begin)) + "\"";
    const size_t at = bytes.find(wrong);
    const std::string right = "\"checksum\":\"" + std::string(sentence.substr(here + kBetween.size())) + "\"";
    if (at != std::string::npos && right.size() == wrong.size()) bytes.replace(at, wrong.size(), right);
  }
}

// Another number in a tensor of whole numbers, beside the one that is there or far from it. A short tensor, such as labels, is
// changed as often as a long one. Whether there is one.
inline bool mutate_number(const std::string& header, std::string& data, Mutator& mutator) {
  struct Numbers {
    size_t begin, count, width;
  };
  std::vector<Numbers> found;
  taken([&] {
    const Json tensors = parse_json(header);
    for (const auto& [name, entry] : tensors.as_object()) {
      if (name == "__metadata__") continue;
      const std::vector<int64_t> offsets = entry["data_offsets"].as_ints();
      const std::string& dtype = entry["dtype"].as_string();
      const size_t width = dtype == "I64" ? 8 : dtype == "I32" ? 4 : 0;
      if (width == 0 || offsets.size() != 2 || offsets[0] < 0 || offsets[1] < offsets[0]) continue;
      if (offsets[1] > static_cast<int64_t>(data.size())) continue;
      const int64_t count = (offsets[1] - offsets[0]) / static_cast<int64_t>(width);
      if (count > 0) found.push_back({static_cast<size_t>(offsets[0]), static_cast<size_t>(count), width});
    }
  });
  if (found.empty()) return false;
  constexpr int64_t kValues[] = {0, 1, -1, 2, 5, 9, 60, 61, INT32_MAX, INT32_MIN};
  const Numbers& numbers = found[mutator.below(found.size())];
  char* place = &data[numbers.begin + mutator.below(numbers.count) * numbers.width];
  uint64_t value = 0;
  std::memcpy(&value, place, numbers.width);
  value =
      mutator.below(2) == 0 ? value + mutator.below(5) - 2 : static_cast<uint64_t>(kValues[mutator.below(std::size(kValues))]);
  std::memcpy(place, &value, numbers.width);
  return true;
}

inline void mutate_safetensors(std::string& bytes, Mutator& mutator) {
  uint64_t length = 0;
  if (bytes.size() >= sizeof length) std::memcpy(&length, bytes.data(), sizeof length);
  if (bytes.size() < sizeof length || length > bytes.size() - sizeof length || mutator.below(20) == 0)
    return mutator.bytes(bytes);
  std::string header = bytes.substr(sizeof length, length), data = bytes.substr(sizeof length + length);
  switch (mutator.below(3)) {
    case 0:
      if (mutator.below(4) == 0 || !mutate_number(header, data, mutator)) mutator.bytes(data);
      break;
    default:
      mutator.json(header);
  }
  bytes = joined(header, data);
  if (mutator.below(10) != 0) mend_checksum(bytes);
}

}  // namespace mobizo::trainer::fuzz
