#include "journal.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <limits>
#include <string_view>

#include "crc32.h"

namespace mobizo::trainer {
namespace {

constexpr std::string_view kMagic = "MOBIZOJN";
constexpr uint32_t kVersion = 3;
constexpr size_t kPreamble = 16, kCrc = 4;

using Check = void (*)(const Json&);

void whole(const Json& value) { value.as_int(); }
void number(const Json& value) { value.as_double(); }
void boolean(const Json& value) { value.as_bool(); }
void text(const Json& value) { value.as_string(); }
void wholes(const Json& value) { value.as_ints(); }
template <Check check>
void optional(const Json& value) {
  if (!value.is_null()) check(value);
}

struct Field {
  const char* name;
  Check check;
};

// That `json` has exactly these members, each of its type. mobizo_kernels/journal/header.py asks the same.
template <size_t n>
void check_fields(const Json& json, const Field (&fields)[n]) {
  for (const Field& field : fields) blaming(field.name, [&] { field.check(json[field.name]); });
  for (const auto& [name, value] : json.as_object())
    if (std::none_of(fields, fields + n, [&, &name = name](const Field& field) { return name == field.name; }))
      fail("the header has the unknown field ", name, " of a later version");
  if (json.as_object().size() != n) fail("the header has a field of a later version");
}

void parameters(const Json& value) {
  constexpr Field kFields[] = {{"name", text}, {"shape", wholes}, {"stream", whole}, {"scaling", optional<number>}};
  for (const Json& parameter : value.as_array()) check_fields(parameter, kFields);
}

void optimizer(const Json& value) { parse_update_rule(value); }

constexpr Field kFields[] = {{"run_seed", whole},
                             {"queries", whole},
                             {"eps", number},
                             {"lr", number},
                             {"lr_schedule", optional<text>},
                             {"steps", optional<whole>},
                             {"normalize", boolean},
                             {"distribution", text},
                             {"estimator", text},
                             {"optimizer", optimizer},
                             {"batch_size", optional<whole>},
                             {"data", optional<text>},
                             {"candidate_tokens", optional<wholes>},
                             {"base_fingerprint", optional<text>},
                             {"base_dtype", optional<text>},
                             {"parameters", parameters},
                             {"invocation_tokens", optional<wholes>},
                             {"lora_a", optional<text>},
                             {"lora_b", optional<text>}};
// Those that version 2 did not have.
constexpr const char* kNewFields[] = {"candidate_tokens", "base_dtype", "invocation_tokens", "lora_a", "lora_b"};

template <typename T>
T load(const char* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

template <typename T>
void store(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
}

size_t record_bytes(const Journal& journal) {
  return (journal.version == 1 ? 12 : 28) + 4 * static_cast<size_t>(journal.queries);
}

// The header of an earlier version as this one has it.
Json upgraded(const Json& header, uint32_t version) {
  Json::Object members = header.as_object();
  if (version == 1) members.emplace_back("optimizer", UpdateRule{}.json());
  for (const char* name : kNewFields) members.emplace_back(name, nullptr);
  for (auto& [name, value] : members) {
    if (name != "parameters") continue;
    Json::Array parameters = value.as_array();
    for (Json& parameter : parameters) {
      Json::Object fields = parameter.as_object();
      fields.emplace_back("scaling", nullptr);
      parameter = std::move(fields);
    }
    value = std::move(parameters);
  }
  return members;
}

void read_header(std::string_view bytes, Journal& journal) {
  if (bytes.substr(0, kMagic.size()) != kMagic) fail("not a journal");
  if (bytes.size() < kPreamble) fail("the header is cut short");
  journal.version = load<uint32_t>(&bytes[8]);
  const auto length = load<uint32_t>(&bytes[12]);
  if (journal.version < 1 || journal.version > kVersion)
    fail("expected journal version 1 to ", kVersion, ", got ", journal.version);
  if (bytes.size() - kPreamble < length + kCrc) fail("the header is cut short");
  const size_t end = kPreamble + length;
  if (crc32(bytes.data(), end) != load<uint32_t>(&bytes[end])) fail("the header is damaged: its checksum is wrong");
  journal.header = parse_json(bytes.substr(kPreamble, length));
  if (journal.version < kVersion) journal.header = upgraded(journal.header, journal.version);
  check_fields(journal.header, kFields);
  journal.rule = parse_update_rule(journal.header["optimizer"]);
  check_lr(journal.header["lr"].as_double());
  journal.queries = journal.header["queries"].as_int();
  journal.run_seed = journal.header["run_seed"].as_int();
  if (journal.queries < 1 || journal.queries > 1 << 20) fail("queries must be at least 1, got ", journal.queries);
  journal.valid_bytes = static_cast<int64_t>(end + kCrc);
}

StepRecord read_record(const char* bytes, const Journal& journal) {
  StepRecord record{true, std::numeric_limits<float>::quiet_NaN(), 0, 1, {}};
  size_t at = 8;
  if (journal.version > 1) {
    const auto applied = load<uint32_t>(bytes + 8);
    if (applied > 1) fail("the record of step ", journal.records.size(), " is damaged: neither applied nor skipped: ", applied);
    record = {applied == 1, load<float>(bytes + 12), load<float>(bytes + 16), load<float>(bytes + 20), {}};
    at = 24;
  }
  record.coeffs.resize(static_cast<size_t>(journal.queries));
  std::memcpy(record.coeffs.data(), bytes + at, 4 * record.coeffs.size());
  return record;
}

void read_records(std::string_view bytes, Journal& journal, bool drop_last) {
  const size_t first = static_cast<size_t>(journal.valid_bytes), size = record_bytes(journal);
  for (size_t at = first; at + size <= bytes.size(); at += size) {
    const char* record = &bytes[at];
    const auto step = static_cast<int64_t>(journal.records.size());
    if (crc32(record, size - kCrc) != load<uint32_t>(record + size - kCrc)) {
      const bool is_last = at + size == bytes.size();
      if (is_last && drop_last) break;
      fail("the record of step ", step, " is damaged: its checksum is wrong",
           is_last ? "; resuming its run drops it, and makes the step again" : "");
    }
    if (load<int64_t>(record) != step)
      fail("the record of step ", step, " is damaged: it says that it is of step ", load<int64_t>(record));
    journal.records.push_back(read_record(record, journal));
    journal.valid_bytes += static_cast<int64_t>(size);
  }
}

Journal parse_journal(const std::string& path, const std::string& bytes, bool drop_last = false) {
  return blaming(path, [&] {
    Journal journal;
    read_header(bytes, journal);
    read_records(bytes, journal, drop_last);
    return journal;
  });
}

// The first parameter that differs, in the scaling alone or in anything else.
void check_parameters(const std::string& path, const Json& there, const Json& here) {
  const Json::Array &got = there.as_array(), &expected = here.as_array();
  for (size_t i = 0; i < got.size() && got.size() == expected.size(); ++i) {
    bool same = true;
    for (const char* field : {"name", "shape", "stream"}) same &= got[i][field] == expected[i][field];
    if (!same) break;
    const Json& scaling = got[i]["scaling"];
    if (!scaling.is_null() && scaling != expected[i]["scaling"])
      fail(path, ": scaling of ", expected[i]["name"].as_string(), " is ", expected[i]["scaling"].dump(),
           " here, but the journal has ", scaling.dump());
    if (i + 1 == got.size()) return;
  }
  fail(path, ": the journal is of other parameters: their names, shapes or streams differ");
}

File open_journal(const std::string& path, const Json& header, bool resume) {
  if (resume && exists(path)) return {path, O_RDWR | O_APPEND};
  const std::string text = header.dump();
  std::string bytes(kMagic);
  store(bytes, kVersion);
  store(bytes, static_cast<uint32_t>(text.size()));
  bytes += text;
  store(bytes, crc32(bytes.data(), bytes.size()));
  check_created("journal", path);
  try {
    return File::created(path, bytes);
  } catch (const SystemError& error) {
    if (error.code() == EEXIST) fail(path, ": the journal exists already; resume it, or name another file");
    throw;
  }
}

}  // namespace

bool StepRecord::operator==(const StepRecord& other) const {
  const auto same = [](float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; };
  return applied == other.applied && same(loss, other.loss) && same(rate, other.rate) && same(decay, other.decay) &&
         coeffs == other.coeffs;
}

bool is_journal(const std::string& bytes) { return std::string_view(bytes).substr(0, kMagic.size()) == kMagic; }

Journal read_journal(const std::string& path) { return parse_journal(path, read_file(path)); }

void check_journal_header(const std::string& path, const Journal& journal, const Json& expected) {
  for (const auto& [name, value] : expected.as_object()) {
    const Json& got = journal.header[name];
    if (name == "parameters") {
      check_parameters(path, got, value);
    } else if (got != value) {
      fail(path, ": ", name, " is ", value.dump(), " here, but the journal has ", got.dump(),
           name == "lora_a" ? "; the run began with another adapter, such as a readout" : "");
    }
  }
}

JournalWriter::JournalWriter(const std::string& path, const Json& header, bool resume, int64_t sync_every)
    : file_(open_journal(path, header, resume)), sync_every_(sync_every) {
  if (sync_every < 1) fail("sync_every must be at least 1, got ", sync_every);
  const File::Lock lock = file_.lock();
  if (lock == File::Lock::kTaken) fail(path, ": another process is writing this file");
  locked_ = lock == File::Lock::kHeld;
  std::string bytes(static_cast<size_t>(file_.size()), '\0');
  file_.read(bytes.data(), bytes.size(), 0);
  journal_ = parse_journal(path, bytes, true);
  if (journal_.version != kVersion)
    fail(path, ": version ", journal_.version, " of the journal's format can be replayed, but not gone on with");
  check_journal_header(path, journal_, header);
  dropped_ = bytes.size() - static_cast<size_t>(journal_.valid_bytes) == record_bytes(journal_);
  if (file_.size() != journal_.valid_bytes) file_.truncate(journal_.valid_bytes);
}

void JournalWriter::append(int64_t step, const StepRecord& record) {
  std::string bytes;
  store(bytes, step);
  store(bytes, uint32_t{record.applied});
  for (const float value : {record.loss, record.rate, record.decay}) store(bytes, value);
  bytes.append(reinterpret_cast<const char*>(record.coeffs.data()), 4 * record.coeffs.size());
  store(bytes, crc32(bytes.data(), bytes.size()));
  check();
  try {
    file_.append(bytes.data(), bytes.size());
    if ((step + 1) % sync_every_ == 0) file_.sync();
  } catch (const SystemError& error) {
    try {
      file_.truncate(journal_.valid_bytes);
    } catch (const SystemError&) {  // what is left is a torn record, which the next to open the journal cuts off
    }
    throw SystemError(error.code(),
                      message("the journal cannot take the record of step ", step, ": cannot write ", file_.path()));
  }
  journal_.valid_bytes += static_cast<int64_t>(bytes.size());
  journal_.records.push_back(record);
}

void JournalWriter::sync() const {
  check();
  file_.sync();
}

void JournalWriter::check() const {
  const std::string what = file_.changed(journal_.valid_bytes);
  if (!what.empty()) throw JournalLost(message(file_.path(), ": the journal ", what, " while the run was writing it"));
}

}  // namespace mobizo::trainer
