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

inline void mutate_safetensors(std::string& bytes, Mutator& mutator) {
  uint64_t length = 0;
  if (bytes.size() >= sizeof length) std::memcpy(&length, bytes.data(), sizeof length);
  if (bytes.size() < sizeof length || length > bytes.size() - sizeof length || mutator.below(20) == 0)
    return mutator.bytes(bytes);
  std::string header = bytes.substr(sizeof length, length), data = bytes.substr(sizeof length + length);
  switch (mutator.below(3)) {
    case 0: {  // a value as it lies there, of 4 bytes, or any
      if (data.size() < 4 || mutator.below(4) == 0) {
        mutator.bytes(data);
        break;
      }
      constexpr int32_t kValues[] = {0, 1, -1, 2, 5, 9, 60, 61, INT32_MAX, INT32_MIN};
      std::memcpy(&data[mutator.below(data.size() / 4) * 4], &kValues[mutator.below(std::size(kValues))], 4);
      break;
    }
    default:
      mutator.json(header);
  }
  bytes = joined(header, data);
  if (mutator.below(10) != 0) mend_checksum(bytes);
}

}  // namespace mobizo::trainer::fuzz
