// The journal of a run: its settings, and one record per step. Replayed from the initial adapter it gives the adapter.
//
//   8 bytes "MOBIZOJN", u32 version, u32 n, n bytes of JSON, u32 crc32 of everything before it;
//   then records: i64 step, u32 applied, f32 loss, f32 rate, f32 decay, q f32 update coefficients, u32 crc32 of the record's
//   bytes before it. Little endian. The first version, of plain SGD, has no more than step, coefficients and checksum; the
//   second does not know the adapter.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "errors.h"
#include "file.h"
#include "json.h"
#include "update_rule.h"

namespace mobizo::trainer {

// What a step did, but for its directions, which its number gives.
struct StepRecord {
  bool applied = false;       // else it was skipped, and nothing changed
  float loss = 0;             // of the model before the update; NaN if the journal does not say
  float rate = 0, decay = 1;  // of the update, see UpdateRule
  std::vector<float> coeffs;  // what the update takes of each direction, [q]

  bool operator==(const StepRecord& other) const;
};

struct Journal {
  uint32_t version = 0;
  Json header;  // what an earlier version of the format does not say is null
  int64_t queries = 0;
  int64_t run_seed = 0;
  UpdateRule rule;
  std::vector<StepRecord> records;  // of step 0, 1, ...
  int64_t valid_bytes = 0;          // header and records; what follows was cut off, or is damaged
};

bool is_journal(const std::string& bytes);

// Of this version of the format or an earlier one. A last record that was cut short is left out. Any damage is an Error that
// names the step.
Journal read_journal(const std::string& path);

// Throws Error with the first field of `expected` that differs in the journal. Of parameters for which the journal has no
// scaling that is not compared.
void check_journal_header(const std::string& path, const Journal& journal, const Json& expected);

// The file is no longer what the run wrote: removed, replaced or changed by another program. The run cannot go on.
class JournalLost : public Error {
  using Error::Error;
};

// Appends records; each is whole in the file, and every `sync_every`-th on the disk, before append() returns. While it lives,
// no other run can write the file.
class JournalWriter {
 public:
  // Starts a journal, an Error if there is a file already, or, with `resume` and if there is one, goes on with it: its header
  // must be this one, and a last record that was cut short or is damaged is dropped. Throws Error if it is of an earlier
  // version, or another run writes it.
  JournalWriter(const std::string& path, const Json& header, bool resume, int64_t sync_every);

  const Journal& journal() const { return journal_; }
  // Whether the file system has locks, which keep other runs away.
  bool locked() const { return locked_; }
  // Whether the last record was damaged, as after a power cut, and was dropped: its step has to be made again.
  bool dropped() const { return dropped_; }
  // If the record cannot be written the journal stays as it was, and the SystemError names the file and the step. Throws
  // JournalLost if the file is not as the last call left it.
  void append(int64_t step, const StepRecord& record);
  // Throws JournalLost likewise.
  void sync() const;

 private:
  void check() const;

  File file_;
  bool locked_, dropped_;
  int64_t sync_every_;
  Journal journal_;
};

}  // namespace mobizo::trainer
