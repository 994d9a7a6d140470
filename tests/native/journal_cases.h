// The journal: bytes on the disk, damage of every kind, going on.
#pragma once

#include <fcntl.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <iterator>
#include <limits>

#include "../../executorch_ops/trainer/files/crc32.h"
#include "../../executorch_ops/trainer/files/journal.h"
#include "trainer_harness.h"

namespace mobizo::trainer {

constexpr size_t kTestQueries = 3, kTestSteps = 5, kTestRecord = 28 + 4 * kTestQueries;

inline Json test_parameter(double scaling) {
  return Json::Object{
      {"name", "v.weight"}, {"shape", Json::list(std::vector<int64_t>{4, 2})}, {"stream", 9}, {"scaling", scaling}};
}

inline Json test_header(double lr = 0.1, double scaling = 2) {
  return Json::Object{{"run_seed", -7},
                      {"queries", int64_t{kTestQueries}},
                      {"eps", 0.5},
                      {"lr", lr},
                      {"lr_schedule", "linear"},
                      {"steps", 9},
                      {"normalize", true},
                      {"distribution", "gaussian"},
                      {"estimator", "two_sided"},
                      {"optimizer", UpdateRule{"adam"}.json()},
                      {"batch_size", 4},
                      {"data", "0123abcd"},
                      {"candidate_tokens", Json::list(std::vector<int64_t>{5, 9})},
                      {"base_fingerprint", "00ff"},
                      {"base_dtype", "int8"},
                      {"parameters", Json::Array{test_parameter(2), test_parameter(scaling)}},
                      {"invocation_tokens", Json::Array{}},
                      {"lora_a", "0a"},
                      {"lora_b", "0b"}};
}

inline JournalWriter test_writer(const std::string& path, int64_t sync_every = 1) {
  return {path, test_header(), true, sync_every};
}

inline std::string test_head(const std::string& header, char version) {
  std::string bytes = "MOBIZOJN" + std::string{version, '\0', '\0', '\0'};
  const auto append = [&](uint32_t value) { bytes.append(reinterpret_cast<const char*>(&value), sizeof value); };
  append(static_cast<uint32_t>(header.size()));
  bytes += header;
  append(crc32(bytes.data(), bytes.size()));
  return bytes;
}

// One of them is skipped.
inline StepRecord test_record(int64_t step) {
  Random random(static_cast<uint64_t>(step));
  if (step == 3) return {false, std::numeric_limits<float>::infinity(), 0, 1, std::vector<float>(kTestQueries)};
  return {true, random.uniform(), random.uniform(), random.uniform(), {random.uniform(), random.uniform(), random.uniform()}};
}

inline std::string make_journal(const std::string& path) {
  JournalWriter writer(path, test_header(), false, 2);
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
  std::string expected = test_head(test_header().dump(), 3);
  const auto append = [&](auto value) { expected.append(reinterpret_cast<const char*>(&value), sizeof value); };
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
      JournalWriter writer = test_writer(path);
      if (writer.dropped()) report.check(name, "a record that was cut short passes for a damaged one");
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
    } else {
      check_error(report, name, text("the record of step ", step, " is damaged"), [&] { read_journal(path); });
    }
    if (step + 1 < kTestSteps) continue;
    {
      JournalWriter writer = test_writer(path);
      report.check(name + ", resumed",
                   writer.dropped() ? wrong_records(writer.journal(), kTestSteps - 1) : "it does not say so");
      writer.append(kTestSteps - 1, test_record(kTestSteps - 1));
    }
    report.check(name + ", gone on", read_file(path) == bytes ? "" : "other bytes than those of an uninterrupted run");
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
    JournalWriter writer = test_writer(path);
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

// Whether a field of headers came with a version.
inline bool since(const std::string& name, int version) {
  const std::string added[] = {"candidate_tokens", "base_dtype", "invocation_tokens", "lora_a", "lora_b"};
  return version == 3 && std::find(std::begin(added), std::end(added), name) != std::end(added);
}

// As the versions before the third had it.
inline Json::Member without_scaling(const Json::Member& member) {
  if (member.first != "parameters") return member;
  Json::Array parameters;
  for (const Json& parameter : member.second.as_array()) {
    Json::Object fields = parameter.as_object();
    fields.pop_back();
    parameters.push_back(std::move(fields));
  }
  return {member.first, std::move(parameters)};
}

inline void check(bool done) {
  if (!done) throw std::runtime_error("the file system refuses a test");
}

// The first version, of plain SGD, is read, but not gone on with.
inline void first_version_case(Report& report, const Scratch& scratch) {
  const Json now = test_header();
  Json::Object fields;
  for (const Json::Member& member : now.as_object())
    if (!since(member.first, 3) && member.first != "optimizer") fields.push_back(without_scaling(member));
  const std::string header = Json(std::move(fields)).dump();
  std::string bytes = test_head(header, 1);
  const auto append = [&](auto value) { bytes.append(reinterpret_cast<const char*>(&value), sizeof value); };
  for (int64_t step = 0; step < 2; ++step) {
    const size_t begin = bytes.size();
    append(step);
    for (const float coeff : {1.5f, -2.0f, 0.25f}) append(coeff);
    append(crc32(&bytes[begin], bytes.size() - begin));
  }
  const std::string path = scratch.write("first", bytes + "torn");
  const Journal journal = read_journal(path);
  const StepRecord& record = journal.records.back();
  const bool right = journal.records.size() == 2 && record.applied && std::isnan(record.loss) && record.decay == 1 &&
                     record.coeffs == std::vector<float>{1.5f, -2.0f, 0.25f} && journal.rule.plain() &&
                     journal.header["optimizer"] == UpdateRule{}.json();
  report.check("journal of the first version", right ? "" : "other records");
  check_error(report, "the first version, gone on with", "can be replayed, but not gone on with", [&] { test_writer(path); });
}

// The second version knows nothing of the adapter.
inline void second_version_case(Report& report, const Scratch& scratch, const std::string& bytes) {
  const Json now = test_header();
  Json::Object fields;
  for (const Json::Member& member : now.as_object())
    if (!since(member.first, 3)) fields.push_back(without_scaling(member));
  const std::string records = bytes.substr(bytes.size() - kTestSteps * kTestRecord);
  const std::string path = scratch.write("second", test_head(Json(std::move(fields)).dump(), 2) + records);
  const Journal journal = read_journal(path);
  report.check("journal of the second version", wrong_records(journal, kTestSteps));
  const bool unknown = journal.header["lora_a"].is_null() && journal.header["parameters"].as_array()[0]["scaling"].is_null();
  report.check("what the second version does not say", unknown ? "" : "not null");
  check_journal_header(path, journal, Json::Object{{"parameters", test_header(0.1, 7)["parameters"]}});
  check_error(report, "the second version, gone on with", "can be replayed, but not gone on with", [&] { test_writer(path); });
}

// A run that writes a journal notices what others do to it.
inline void lost_cases(Report& report, const Scratch& scratch, const std::string& bytes) {
  const std::string path = scratch.file("lost");
  const auto lost = [&](const char* name, const char* part, const std::function<void()>& harm) {
    scratch.write("lost", bytes.substr(0, bytes.size() - kTestRecord));
    JournalWriter writer = test_writer(path, 100);
    harm();
    const std::string there = exists(path) ? read_file(path) : "";
    for (int i = 0; i < 2; ++i)
      check_error(report, text("journal ", name), part, [&] { writer.append(kTestSteps - 1, test_record(kTestSteps - 1)); });
    check_error(report, text("journal ", name, ", synced"), part, [&] { writer.sync(); });
    report.check(text("journal ", name, " is left alone"), there == (exists(path) ? read_file(path) : "") ? "" : "other bytes");
  };
  lost("removed", "lost: the journal was removed or renamed while", [&] { unlink(path.c_str()); });
  lost("replaced", "lost: the journal was replaced by another file while", [&] {
    scratch.write("new", bytes);
    rename(scratch.file("new").c_str(), path.c_str());
  });
  lost("cut", "where", [&] { check(truncate(path.c_str(), 100) == 0); });
  lost("lengthened", "so another program changed it, while", [&] { std::ofstream(path, std::ios::app) << "x"; });
}

// Files that are not ready are removed once their process has died, and not before.
inline void scratch_cases(Report& report, const Scratch& scratch) {
  const std::string dead = scratch.write(".run-0123abcd.mobizo", "half"),
                    living = scratch.write(".run-4567cdef.mobizo", "half");
  const std::string foreign = scratch.write(".run-0123abcg.mobizo", "mine");
  {
    const File held(living, O_RDONLY);
    report.check("a scratch file is locked", held.lock() == File::Lock::kHeld ? "" : "not locked");
    const JournalWriter writer(scratch.file("run"), test_header(), false, 1);
    report.check("dead scratch", exists(dead) ? "it is still there" : "");
    report.check("living scratch", exists(living) && exists(foreign) ? "" : "it was removed");
  }
  write_atomically(scratch.file("other"), {"x"});
  report.check("scratch of a process that died since", exists(living) ? "it is still there" : "");
}

inline void distinct_cases(Report& report, const Scratch& scratch) {
  const std::string program = scratch.write("program", "x"), other = scratch.write("other", "y");
  const std::string link = scratch.file("link"), hard = scratch.file("hard"), dotted = scratch.file("./program");
  check(symlink("program", link.c_str()) == 0 && ::link(program.c_str(), hard.c_str()) == 0);
  for (const std::string& path : {program, link, hard, dotted})
    check_error(report, "output " + path, "--log: " + path + " is the same file as PROGRAM: name another one",
                [&] { check_distinct({{"--out", other}, {"--log", path}}, {{"PROGRAM", program}}); });
  check_error(report, "two outputs that are not there", "--log: " + scratch.file("./new") + " is the same file as --out",
              [&] { check_distinct({{"--out", scratch.file("new")}, {"--log", scratch.file("./new")}}, {}); });
  check_distinct({{"--out", other}, {"--log", ""}, {"--journal", scratch.file("new")}}, {{"PROGRAM", program}, {"--in", ""}});
}

inline void journal_cases(Report& report) {
  const Scratch scratch;
  const std::string path = scratch.file("journal"), bytes = make_journal(path);
  layout_case(report, bytes);
  torn_cases(report, scratch, bytes);
  damage_cases(report, scratch, bytes);
  full_disk_case(report, scratch, bytes);
  check_error(report, "journal that exists", "exists already", [&] { JournalWriter(path, test_header(), false, 1); });
  check_error(report, "journal of nobody", "cannot open", [&] { read_journal(scratch.file("nobody")); });
  first_version_case(report, scratch);
  second_version_case(report, scratch, bytes);
  lost_cases(report, scratch, bytes);
  scratch_cases(report, Scratch());
  distinct_cases(report, Scratch());
  check_error(report, "journal of another version", "expected journal version 1 to 3, got 4", [&] {
    std::string other = bytes;
    other[8] = 4;
    read_journal(scratch.write("other", other));
  });
  check_error(report, "journal that is none", "not a journal", [&] { read_journal(scratch.write("other", "something else")); });
  Json::Object later = test_header().as_object(), fewer = later;
  later.emplace_back("objective", "generation");
  fewer.pop_back();
  check_error(report, "journal with a field of a later version", "unknown field objective",
              [&] { read_journal(scratch.write("other", test_head(Json(later).dump(), 3))); });
  check_error(report, "journal without a field", "'lora_b' is missing",
              [&] { read_journal(scratch.write("other", test_head(Json(fewer).dump(), 3))); });
  check_error(report, "journal with two writers", "another process is writing this file",
              [&] { const JournalWriter one = test_writer(path), two = test_writer(path); });
  check_error(report, "journal of another run", "lr is 0.2 here, but the journal has 0.1",
              [&] { JournalWriter(path, test_header(0.2), true, 1); });
  check_error(report, "journal of another scaling", "scaling of v.weight is 7.0 here, but the journal has 2.0",
              [&] { JournalWriter(path, test_header(0.1, 7), true, 1); });
  report.check("journals of others are left alone", read_file(path) == bytes ? "" : "other bytes");
}

}  // namespace mobizo::trainer
