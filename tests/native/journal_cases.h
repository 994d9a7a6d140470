// The journal: bytes on the disk, damage of every kind, going on.
#pragma once

#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <limits>

#include "../../executorch_ops/trainer/crc32.h"
#include "../../executorch_ops/trainer/journal.h"
#include "trainer_harness.h"

namespace mobizo::trainer {

constexpr size_t kTestQueries = 3, kTestSteps = 5, kTestRecord = 28 + 4 * kTestQueries;

inline Json test_header() {
  return Json::Object{
      {"run_seed", -7}, {"queries", int64_t{kTestQueries}}, {"lr", 0.1}, {"optimizer", UpdateRule{"adam"}.json()}};
}

// One of them is skipped.
inline StepRecord test_record(int64_t step) {
  Random random(static_cast<uint64_t>(step));
  if (step == 3) return {false, std::numeric_limits<float>::infinity(), 0, 1, std::vector<float>(kTestQueries)};
  return {true, random.uniform(), random.uniform(), random.uniform(), {random.uniform(), random.uniform(), random.uniform()}};
}

inline std::string make_journal(const std::string& path) {
  JournalWriter::create(path, test_header());
  JournalWriter writer(path, 2);
  for (int64_t step = 0; step < int64_t{kTestSteps}; ++step) writer.append(step, test_record(step));
  return read_file(path);
}

// That the journal has exactly these steps.
inline std::string wrong_records(const Journal& journal, size_t steps) {
  if (journal.records.size() != steps) return text("expected ", steps, " records, got ", journal.records.size());
  for (size_t step = 0; step < steps; ++step)
    if (!(journal.records[step] == test_record(static_cast<int64_t>(step)))) return text("another record of step ", step);
  return "";
}

inline void layout_case(Report& report, const std::string& bytes) {
  const std::string header = test_header().dump();
  std::string expected = "MOBIZOJN" + std::string("\2\0\0\0", 4);
  const auto append = [&](auto value) { expected.append(reinterpret_cast<const char*>(&value), sizeof value); };
  append(static_cast<uint32_t>(header.size()));
  expected += header;
  append(crc32(expected.data(), expected.size()));
  for (int64_t step = 0; step < int64_t{kTestSteps}; ++step) {
    const size_t begin = expected.size();
    append(step);
    const StepRecord record = test_record(step);
    append(uint32_t{record.applied});
    for (const float value : {record.loss, record.rate, record.decay}) append(value);
    for (const float coeff : record.coeffs) append(coeff);
    append(crc32(&expected[begin], expected.size() - begin));
  }
  report.check("journal layout", bytes == expected ? "" : "other bytes");
}

inline void torn_cases(Report& report, const Scratch& scratch, const std::string& bytes) {
  const size_t header = bytes.size() - kTestSteps * kTestRecord;
  for (size_t size = 0; size < bytes.size(); ++size) {
    const std::string path = scratch.write("torn", bytes.substr(0, size));
    const std::string name = text("journal cut to ", size, " bytes");
    if (size < header) {
      check_error(report, name, "torn", [&] { read_journal(path); });
      continue;
    }
    const size_t steps = (size - header) / kTestRecord;
    report.check(name, wrong_records(read_journal(path), steps));
    {
      JournalWriter writer(path, 1);
      for (auto step = static_cast<int64_t>(steps); step < int64_t{kTestSteps}; ++step) writer.append(step, test_record(step));
    }
    report.check(name + ", resumed", read_file(path) == bytes ? "" : "other bytes than those of an uninterrupted run");
  }
}

inline void damage_cases(Report& report, const Scratch& scratch, const std::string& bytes) {
  const size_t header = bytes.size() - kTestSteps * kTestRecord;
  for (size_t at = 0; at < bytes.size(); ++at) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    const std::string path = scratch.write("damaged", damaged), name = text("journal damaged at byte ", at);
    const size_t step = at < header ? 0 : (at - header) / kTestRecord;
    if (at < header) {
      check_error(report, name, path, [&] { read_journal(path); });
    } else if (step + 1 < kTestSteps) {
      check_error(report, name, text("the record of step ", step, " is damaged"), [&] { read_journal(path); });
    } else {
      report.check(name, wrong_records(read_journal(path), kTestSteps - 1));
    }
  }
  std::string swapped = bytes.substr(0, header) + bytes.substr(header + kTestRecord);
  const std::string path = scratch.write("damaged", swapped);
  check_error(report, "journal without its first record", "the record of step 0 is damaged", [&] { read_journal(path); });
}

// A file may not grow beyond a limit here: as if the disk were full.
inline void full_disk_case(Report& report, const Scratch& scratch, const std::string& bytes) {
  const std::string path = scratch.write("full", bytes.substr(0, bytes.size() - kTestRecord));
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  {
    JournalWriter writer(path, 1);
    const rlimit limit{bytes.size() - 5, old.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
    const int64_t step = kTestSteps - 1;
    check_error(report, "journal on a full disk", text("the record of step ", step, ": cannot write ", path),
                [&] { writer.append(step, test_record(step)); });
    setrlimit(RLIMIT_FSIZE, &old);
    const bool kept = read_file(path).size() == bytes.size() - kTestRecord;
    report.check("journal on a full disk keeps its records", kept ? "" : "other bytes");
    writer.append(step, test_record(step));
  }
  report.check("journal goes on when there is room", read_file(path) == bytes ? "" : "other bytes");
}

// The first version, of plain SGD, is read, but not gone on with.
inline void first_version_case(Report& report, const Scratch& scratch) {
  const std::string header = R"({"run_seed": 5, "queries": 2, "lr": 0.1})";
  std::string bytes = "MOBIZOJN" + std::string("\1\0\0\0", 4);
  const auto append = [&](auto value) { bytes.append(reinterpret_cast<const char*>(&value), sizeof value); };
  append(static_cast<uint32_t>(header.size()));
  bytes += header;
  append(crc32(bytes.data(), bytes.size()));
  for (int64_t step = 0; step < 2; ++step) {
    const size_t begin = bytes.size();
    append(step);
    for (const float coeff : {1.5f, -2.0f}) append(coeff);
    append(crc32(&bytes[begin], bytes.size() - begin));
  }
  const std::string path = scratch.write("first", bytes + "torn");
  const Journal journal = read_journal(path);
  const StepRecord& record = journal.records.back();
  const bool right = journal.records.size() == 2 && record.applied && std::isnan(record.loss) && record.decay == 1 &&
                     record.coeffs == std::vector<float>{1.5f, -2.0f} && journal.rule.plain() &&
                     journal.header["optimizer"] == UpdateRule{}.json();
  report.check("journal of the first version", right ? "" : "other records");
  check_error(report, "the first version, gone on with", "can be replayed, but not gone on with",
              [&] { const JournalWriter writer(path, 1); });
}

inline void journal_cases(Report& report) {
  const Scratch scratch;
  const std::string path = scratch.file("journal"), bytes = make_journal(path);
  layout_case(report, bytes);
  torn_cases(report, scratch, bytes);
  damage_cases(report, scratch, bytes);
  full_disk_case(report, scratch, bytes);
  check_error(report, "journal that exists", "exists already", [&] { JournalWriter::create(path, test_header()); });
  check_error(report, "journal of nobody", "cannot open", [&] { read_journal(scratch.file("nobody")); });
  first_version_case(report, scratch);
  check_error(report, "journal of another version", "expected journal version 1 or 2, got 3", [&] {
    std::string other = bytes;
    other[8] = 3;
    read_journal(scratch.write("other", other));
  });
  check_error(report, "journal that is none", "not a journal", [&] { read_journal(scratch.write("other", "something else")); });
  check_error(report, "journal with two writers", "another process is writing this file",
              [&] { const JournalWriter one(path, 1), two(path, 1); });
  check_error(report, "journal of another run", "lr is 0.2 here, but the journal has 0.1",
              [&] { check_journal_header(path, read_journal(path).header, Json::Object{{"queries", 3}, {"lr", 0.2}}); });
  check_error(report, "journal without a field", "has no eps",
              [&] { check_journal_header(path, read_journal(path).header, Json::Object{{"eps", 0.2}}); });
}

}  // namespace mobizo::trainer
