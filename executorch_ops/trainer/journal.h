// The journal of a run: its settings, and one record per step. Replayed from the initial adapter it gives the adapter.
//
//   8 bytes "MOBIZOJN", u32 version, u32 n, n bytes of JSON, u32 crc32 of everything before it;
//   then records: i64 step, u32 applied, f32 loss, f32 rate, f32 decay, q f32 update coefficients, u32 crc32 of the record's
//   bytes before it. Little endian. The first version, of plain SGD, has no more than step, coefficients and checksum.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

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
  Json header;
  int64_t queries = 0;
  int64_t run_seed = 0;
  UpdateRule rule;
  std::vector<StepRecord> records;  // of step 0, 1, ...
  int64_t valid_bytes = 0;          // header and whole records; what follows is a torn record
};

bool is_journal(const std::string& bytes);

// Of this version of the format or the first, whose header gets the rule that it does not say. A torn last record is left out.
// Any other damage is an Error that names the step.
Journal read_journal(const std::string& path);

// Throws Error with the first field of `expected` that differs in `header`.
void check_journal_header(const std::string& path, const Json& header, const Json& expected);

// Appends records; each is whole in the file, and every `sync_every`-th on the disk, before append() returns.
class JournalWriter {
 public:
  // Starts a journal: an Error if there is a file already.
  static void create(const std::string& path, const Json& header);
  // Goes on with the journal that `path` holds; a torn last record is cut off. Throws Error if it is of the first version.
  JournalWriter(const std::string& path, int64_t sync_every);

  const Journal& journal() const { return journal_; }
  // If the record cannot be written the journal stays as it was, and the SystemError names the file and the step.
  void append(int64_t step, const StepRecord& record);
  void sync() const { file_.sync(); }

 private:
  File file_;
  int64_t sync_every_;
  Journal journal_;
};

}  // namespace mobizo::trainer
