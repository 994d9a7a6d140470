// Journals: what is read is gone on with, and read again with the record that was added.
#include "../../executorch_ops/trainer/files/journal.h"

#include "../../executorch_ops/trainer/files/crc32.h"
#include "fuzz.h"

using namespace mobizo::trainer;

namespace {

constexpr size_t kPreamble = 16, kCrc = 4;

void mend(std::string& bytes, size_t begin, size_t size) {
  const uint32_t crc = mobizo::trainer::crc32(&bytes[begin], size);
  std::memcpy(&bytes[begin + size], &crc, kCrc);
}

// Changes the header or the records, with lengths and checksums made right.
void mutate_journal(std::string& bytes, fuzz::Mutator& mutator) {
  uint32_t length = 0;
  if (bytes.size() >= kPreamble) std::memcpy(&length, &bytes[12], sizeof length);
  if (bytes.size() < kPreamble + length + kCrc || mutator.below(20) == 0) return mutator.bytes(bytes);
  std::string preamble = bytes.substr(0, kPreamble), header = bytes.substr(kPreamble, length),
              records = bytes.substr(kPreamble + length + kCrc);
  switch (mutator.below(4)) {
    case 0:
      mutator.bytes(records);
      break;
    case 1:
      preamble[8] = static_cast<char>(mutator.below(5));  // the version
      break;
    default:
      mutator.json(header);
  }
  length = static_cast<uint32_t>(header.size());
  std::memcpy(&preamble[12], &length, sizeof length);
  bytes = preamble + header + std::string(kCrc, '\0');
  mend(bytes, 0, kPreamble + length);
  size_t at = bytes.size(), queries = 0;
  bytes += records;
  fuzz::taken([&] { queries = static_cast<size_t>(parse_json(header)["queries"].as_int()); });
  const size_t size = (preamble[8] == 1 ? 8 : 24) + 4 * (queries % 64);
  for (int64_t step = 0; at + size + kCrc <= bytes.size() && mutator.below(20) != 0; ++step, at += size + kCrc) {
    if (mutator.below(20) != 0) std::memcpy(&bytes[at], &step, sizeof step);
    mend(bytes, at, size);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::InputFile input("journal");
  const std::string& path = input.holding({reinterpret_cast<const char*>(data), size});
  fuzz::taken([&] {
    const Journal journal = read_journal(path);
    check_journal_header(path, journal, journal.header);
    const auto steps = static_cast<int64_t>(journal.records.size());
    if (journal.version != 3 || journal.queries > 1000) return;
    StepRecord record{true, 0.5f, 0.25f, 1, std::vector<float>(static_cast<size_t>(journal.queries), 2)};
    JournalWriter(path, journal.header, true, 1).append(steps, record);
    const Journal more = read_journal(path);
    fuzz::promise(more.records.size() == journal.records.size() + 1 && more.records.back() == record,
                  "a journal that is read can be gone on with");
  });
  return 0;
}

void fuzz::change(std::string& input, Mutator& mutator) { mutate_journal(input, mutator); }
