#include "safetensors.h"

#include <fcntl.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <string_view>

#include "checksum.h"
#include "crc32.h"

namespace mobizo::trainer {
namespace {

constexpr int64_t kMostHeaderBytes = 100'000'000;  // as the safetensors library
constexpr const char* kChecksum = "checksum";      // in the metadata
constexpr int64_t kMostBytes = std::numeric_limits<int64_t>::max();

int64_t element_bytes(const std::string& dtype) {
  if (dtype == "F64" || dtype == "I64" || dtype == "U64") return 8;
  if (dtype == "F32" || dtype == "I32" || dtype == "U32") return 4;
  if (dtype == "F16" || dtype == "BF16" || dtype == "I16" || dtype == "U16") return 2;
  if (dtype == "I8" || dtype == "U8" || dtype == "BOOL") return 1;
  fail("unknown dtype '", dtype, "'");
}

int64_t checked_bytes(const std::string& dtype, const std::vector<int64_t>& shape) {
  int64_t bytes = element_bytes(dtype);
  for (const int64_t size : shape) {
    if (size < 0 || (size > 0 && bytes > kMostBytes / size)) fail("impossible shape ", shape_text(shape));
    bytes *= size;
  }
  return bytes;
}

uint32_t crc32_of(std::string_view text, uint32_t before) { return crc32(text.data(), text.size(), before); }

// The checksum of all that a file says, in an order that does not depend on how it is laid out. `add` goes on with the bytes of
// a tensor.
template <typename Tensor, typename Add>
std::string content_checksum(const std::map<std::string, std::string>& metadata, const std::map<std::string, Tensor>& tensors,
                             Add add) {
  constexpr std::string_view kEnd("\0", 1);
  uint32_t crc = 0;
  const auto add_text = [&](std::string_view text) { crc = crc32_of(kEnd, crc32_of(text, crc)); };
  for (const auto& [name, value] : metadata) {
    if (name == kChecksum) continue;
    add_text(name);
    add_text(value);
  }
  for (const auto& [name, tensor] : tensors) {
    std::string sizes;
    for (const int64_t size : tensor.shape) sizes += (sizes.empty() ? "" : ",") + std::to_string(size);
    add_text(name);
    add_text(tensor.dtype);
    add_text(sizes);
    crc = add(tensor, crc);
  }
  return hex(crc);
}

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

SafetensorsFile::SafetensorsFile(const std::string& path) : file_(path, O_RDONLY) {
  blaming(path, [&] {
    read_header();
    check_checksum();
  });
}

void SafetensorsFile::check_checksum() const {
  const auto found = metadata_.find(kChecksum);
  if (found == metadata_.end()) return;
  const std::string got = content_checksum(metadata_, tensors_, [&](const Tensor& tensor, uint32_t crc) {
    return crc32_of(file_, tensor.offset, tensor.bytes, crc);
  });
  if (got != found->second)
    fail("damaged, or changed since it was written: its checksum is ", found->second, ", that of its content ", got);
}

void SafetensorsFile::read_header() {
  const int64_t file_bytes = file_.size();
  if (file_bytes < 8) fail("not a safetensors file: it has ", file_bytes, " bytes");
  uint64_t length = 0;
  file_.read(&length, sizeof length, 0);
  if (length > static_cast<uint64_t>(std::min(file_bytes - 8, kMostHeaderBytes)))
    fail("not a safetensors file, or cut short: a header of ", length, " bytes in a file of ", file_bytes);
  std::string text(length, '\0');
  file_.read(text.data(), text.size(), 8);
  const int64_t data = 8 + static_cast<int64_t>(length);
  const Json header = parse_json(text);
  for (const auto& [name, entry] : header.as_object()) {
    if (name == "__metadata__") {
      for (const auto& [key, value] : entry.as_object()) metadata_[key] = value.as_string();
      continue;
    }
    const Json& json = entry;
    const std::string where = "tensor '" + name + "'";
    tensors_[name] = blaming(where, [&] {
      const std::vector<int64_t> shape = json["shape"].as_ints(), offsets = json["data_offsets"].as_ints();
      const std::string& dtype = json["dtype"].as_string();
      if (offsets.size() != 2 || offsets[0] < 0 || offsets[1] < offsets[0]) fail("data_offsets must be a begin and an end");
      if (offsets[1] > file_bytes - data)
        fail("its data ends at byte ", offsets[1], " of ", file_bytes - data, "; the file has been cut short");
      const int64_t bytes = checked_bytes(dtype, shape);
      if (bytes != offsets[1] - offsets[0])
        fail(bytes, " bytes by its shape ", shape_text(shape), ", ", offsets[1] - offsets[0], " by its offsets");
      return Tensor{dtype, shape, data + offsets[0], bytes};
    });
  }
  std::vector<std::pair<int64_t, int64_t>> extents;
  for (const auto& [name, tensor] : tensors_) extents.emplace_back(tensor.offset, tensor.offset + tensor.bytes);
  std::sort(extents.begin(), extents.end());
  int64_t end = data;
  for (const auto& extent : extents) {
    if (extent.first != end) fail("the tensors overlap or leave a gap at byte ", std::min(extent.first, end));
    end = extent.second;
  }
  if (end != file_bytes) fail("the tensors end at byte ", end, " of ", file_bytes);
}

std::string SafetensorsFile::metadata(const std::string& name) const {
  const auto found = metadata_.find(name);
  return found == metadata_.end() ? "" : found->second;
}

const SafetensorsFile::Tensor& SafetensorsFile::find(const std::string& name, const std::string& dtype) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) fail(path(), ": tensor '", name, "' is missing");
  if (found->second.dtype != dtype) fail(path(), ": tensor '", name, "' must be ", dtype, ", got ", found->second.dtype);
  return found->second;
}

void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const std::vector<std::pair<std::string, std::string>>& metadata) {
  struct Content {
    std::string dtype;
    std::vector<int64_t> shape;
    std::string_view bytes;
  };
  std::map<std::string, Content> contents;
  Json::Object strings, header;
  for (const auto& [name, value] : metadata) strings.emplace_back(name, value);
  std::vector<std::string_view> pieces{{}, {}};
  int64_t offset = 0;
  for (const NamedTensor& tensor : tensors) {
    pieces.emplace_back(reinterpret_cast<const char*>(tensor.values->data()), tensor.values->size() * sizeof(float));
    contents[tensor.name] = {safetensors_dtype<float>(), tensor.shape, pieces.back()};
    const int64_t end = offset + static_cast<int64_t>(pieces.back().size());
    Json::Object entry;
    entry.emplace_back("dtype", safetensors_dtype<float>());
    entry.emplace_back("shape", Json::list(tensor.shape));
    entry.emplace_back("data_offsets", Json::list<int64_t>({offset, end}));
    header.emplace_back(tensor.name, std::move(entry));
    offset = end;
  }
  strings.emplace_back(kChecksum, content_checksum({metadata.begin(), metadata.end()}, contents,
                                                   [](const Content& c, uint32_t crc) { return crc32_of(c.bytes, crc); }));
  header.emplace(header.begin(), "__metadata__", std::move(strings));
  std::string text = Json(std::move(header)).dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data is aligned
  const uint64_t length = text.size();
  pieces[0] = {reinterpret_cast<const char*>(&length), sizeof length};
  pieces[1] = text;
  write_atomically(path, pieces);
}

}  // namespace mobizo::trainer
