#include "file_info.h"

#include <fcntl.h>

#include <algorithm>

#include "../files/file.h"
#include "../files/journal.h"
#include "../files/safetensors.h"
#include "dataset.h"
#include "description.h"
#include "program.h"

namespace mobizo::trainer {
namespace {

Json program_info(const std::string& path) {
  return Json::Object{{"kind", "program"}, {"description", parse_json(read_description(path).text)}};
}

Json journal_info(const std::string& path) {
  const Journal journal = read_journal(path);
  const File file(path, O_RDONLY);
  return Json::Object{{"kind", "journal"},
                      {"steps", static_cast<int64_t>(journal.records.size())},
                      {"torn_bytes", file.size() - journal.valid_bytes},
                      {"header", journal.header}};
}

Json safetensors_info(const std::string& path) {
  const SafetensorsFile file(path);
  const bool dataset = file.has("train.tokens") || file.has("test.tokens") || file.has("validation.tokens");
  if (dataset) static_cast<void>(Dataset(path));  // says what is wrong with it
  Json::Object tensors;
  for (const auto& [name, tensor] : file.tensors())
    tensors.emplace_back(name, Json::Object{{"dtype", tensor.dtype}, {"shape", Json::list(tensor.shape)}});
  Json::Object metadata;
  for (const auto& [name, value] : file.all_metadata()) metadata.emplace_back(name, value);
  return Json::Object{
      {"kind", dataset ? "data set" : "adapter"}, {"metadata", std::move(metadata)}, {"tensors", std::move(tensors)}};
}

}  // namespace

Json file_info(const std::string& path) {
  std::string start(8, '\0');
  const File file(path, O_RDONLY);
  file.read(start.data(), static_cast<size_t>(std::min<int64_t>(file.size(), 8)), 0);
  const bool program = start.compare(4, 2, "ET") == 0;
  return is_journal(start) ? journal_info(path) : program ? program_info(path) : safetensors_info(path);
}

}  // namespace mobizo::trainer
