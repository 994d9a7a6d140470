// The safetensors format: 8 bytes, the length n of the header; n bytes of JSON; the data of the tensors without gaps.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "errors.h"
#include "file.h"
#include "json.h"

namespace mobizo::trainer {

template <typename T>
constexpr const char* safetensors_dtype();
template <>
constexpr const char* safetensors_dtype<float>() {
  return "F32";
}
template <>
constexpr const char* safetensors_dtype<int32_t>() {
  return "I32";
}
template <>
constexpr const char* safetensors_dtype<int64_t>() {
  return "I64";
}

std::string shape_text(const std::vector<int64_t>& shape);  // (2, 3)

// A file that is open for reading. Every extent has been checked against the file.
class SafetensorsFile {
 public:
  struct Tensor {
    std::string dtype;
    std::vector<int64_t> shape;
    int64_t offset, bytes;  // in the file
  };

  // Throws Error unless the file is what the format says, to the last byte, and has the checksum that its metadata name, if
  // they name one. mobizo_kernels/files/safetensors.py refuses the same.
  explicit SafetensorsFile(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  bool has(const std::string& name) const { return tensors_.count(name) > 0; }
  const std::map<std::string, std::string>& all_metadata() const { return metadata_; }
  // "" if the file says nothing about it.
  std::string metadata(const std::string& name) const;
  // Throws Error if there is no such tensor or its elements are not T.
  template <typename T>
  std::vector<T> read(const std::string& name) const {
    const Tensor& tensor = find(name, safetensors_dtype<T>());
    std::vector<T> values(static_cast<size_t>(tensor.bytes) / sizeof(T));
    file_.read(values.data(), static_cast<size_t>(tensor.bytes), tensor.offset);
    return values;
  }

 private:
  void read_header();
  void check_checksum() const;
  const Tensor& find(const std::string& name, const std::string& dtype) const;

  File file_;
  std::map<std::string, Tensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

// A float32 tensor to be written.
struct NamedTensor {
  std::string name;
  std::vector<int64_t> shape;
  const std::vector<float>* values;
};

// Atomically: `path` holds what it held before if an Error is thrown. The metadata get a checksum, docs/formats.md.
void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const std::vector<std::pair<std::string, std::string>>& metadata);

}  // namespace mobizo::trainer
