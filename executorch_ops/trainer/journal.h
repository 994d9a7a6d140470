// The journal of a run: its settings, and one record per step. Replayed from the initial adapter it gives the adapter.
//
//   8 bytes "MOBIZOJN", u32 version, u32 n, n bytes of JSON, u32 crc32 of everything before it;
//   then records: i64 step, q f32 update coefficients, u32 crc32 of the record's bytes before it. Little endian.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "file.h"
#include "json.h"

namespace mobizo::trainer {

struct Journal {
  Json header;
  int64_t queries = 0;
  int64_t run_seed = 0;
  std::vector<std::vector<float>> records;  // of step 0, 1, ...: update coefficients, [q]
  int64_t valid_bytes = 0;                  // header and whole records; what follows is a torn record
};

bool is_journal(const std::string& bytes);

// A torn last record is left out. Any other damage is an Error that names the step.
Journal read_journal(const std::string& path);

// Throws Error with the first field of `expected` that differs in `header`.
void check_journal_header(const std::string& path, const Json& header, const Json& expected);

// Appends records; each is whole in the file, and every `sync_every`-th on the disk, before append() returns.
class JournalWriter {
 public:
  // Starts a journal: an Error if there is a file already.
  static void create(const std::string& path, const Json& header);
  // Goes on with the journal that `path` holds; a torn last record is cut off.
  JournalWriter(const std::string& path, int64_t sync_every);

  const Journal& journal() const { return journal_; }
  // If the record cannot be written the journal stays as it was, and the SystemError names the file and the step.
  void append(int64_t step, const std::vector<float>& coeffs);
  void sync() const { file_.sync(); }

 private:
  File file_;
  int64_t sync_every_;
  Journal journal_;
};

}  // namespace mobizo::trainer
