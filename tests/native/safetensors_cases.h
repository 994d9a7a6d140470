// Safetensors files: written and read again, cut at every byte, and with headers that lie.
#pragma once

#include <cmath>

#include "../../executorch_ops/trainer/files/safetensors.h"
#include "trainer_harness.h"

namespace mobizo::trainer {

inline std::string safetensors_bytes(const std::string& header, size_t data) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + header + std::string(data, '\x11');
}

inline void safetensors_cases(Report& report) {
  const Scratch scratch;
  const std::vector<float> matrix{1.5f, -2.0f, 0.0f, 3e-39f, 1e30f, INFINITY}, row{7.0f};
  const std::string path = scratch.file("two.safetensors");
  write_safetensors(path, {{"m", {2, 3}, &matrix}, {"r\"", {1}, &row}}, {{"format", "pt"}, {"note", "caf\u00e9 \"x\""}});
  const std::string bytes = read_file(path);
  {
    const SafetensorsFile file(path);
    report.check("safetensors matrix", file.read<float>("m") == matrix ? "" : "other values");
    report.check("safetensors row", file.read<float>("r\"") == row ? "" : "other values");
    check_equal(report, "safetensors shape", shape_text(file.tensors().at("m").shape), "(2, 3)");
    check_equal(report, "safetensors metadata", file.metadata("note"), "caf\u00e9 \"x\"");
    check_equal(report, "safetensors metadata that is not there", file.metadata("other"), "");
    report.check("safetensors data is aligned", file.tensors().at("m").offset % 8 == 0 ? "" : "it is not");
    check_error(report, "safetensors of another name", path + ": tensor 'x' is missing", [&] { file.read<float>("x"); });
    check_error(report, "safetensors of another dtype", "must be I64, got F32", [&] { file.read<int64_t>("m"); });
  }
  for (size_t size = 0; size < bytes.size(); ++size)
    check_error(report, text("safetensors cut to ", size, " bytes"), scratch.file("cut"),
                [&] { SafetensorsFile file(scratch.write("cut", bytes.substr(0, size))); });
  const std::string word = "checksum";  // by another name it is one text more that the file says, and no other
  for (size_t at = 0; at < bytes.size(); ++at) {
    if (at >= bytes.find(word) && at < bytes.find(word) + word.size()) continue;
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    check_error(report, text("safetensors damaged at byte ", at), scratch.file("damaged"),
                [&] { SafetensorsFile file(scratch.write("damaged", damaged)); });
  }
  check_error(report, "safetensors with a byte more", "the tensors end at byte",
              [&] { SafetensorsFile file(scratch.write("more", bytes + "x")); });

  const auto refused = [&](const std::string& header, size_t data, const std::string& part) {
    check_error(report, "safetensors " + header, part,
                [&] { SafetensorsFile file(scratch.write("bad", safetensors_bytes(header, data))); });
  };
  refused(R"([])", 0, "expected an object");
  refused(R"({"a":{"dtype":"F32","shape":[2]}})", 8, "tensor 'a': 'data_offsets' is missing");
  refused(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "8 bytes by its shape (2,), 4 by its offsets");
  refused(R"({"a":{"dtype":"F3","shape":[2],"data_offsets":[0,8]}})", 8, "unknown dtype 'F3'");
  refused(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8, "impossible shape");
  refused(R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", 0, "impossible shape");
  refused(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8, "a begin and an end");
  refused(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}})", 8, "a begin and an end");
  refused(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})", 8, "cut short");
  refused(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12, "overlap or leave a gap");
  refused(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12,
          "overlap or leave a gap");

  const size_t files = scratch.files().size();
  check_error(report, "safetensors into a directory that is not there", "cannot create a file beside",
              [&] { write_safetensors(scratch.file("no/a"), {{"r", {1}, &row}}, {}); });
  check_error(report, "safetensors over a device", "not a regular file",
              [&] { write_safetensors("/dev/null", {{"r", {1}, &row}}, {}); });
  report.check("safetensors leaves no temporary file", scratch.files().size() == files ? "" : "there is one more");
}

}  // namespace mobizo::trainer
