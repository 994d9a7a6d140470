#include "start.h"

#include <cstdio>

#include "../files/errors.h"
#include "../program/adapter.h"

namespace mobizo::trainer {
namespace {

// Whether a readout can be expected to be made and to help: there are labels, and a head that has no adapter yet.
bool suits_a_readout(Program& program, const Dataset& dataset) {
  return program.description().head && !program.adapter().head && !dataset.labels().empty() && !dataset.in_turn().empty();
}

void keep_start(Program& program, const std::string& journal, bool made, bool fresh) {
  const std::string kept = start_path(journal);
  if (!made) {
    if (fresh) std::remove(kept.c_str());  // that of an earlier run, which this one would go on from
    return;
  }
  try {
    save_adapter(kept, program.description(), program.adapter());
  } catch (...) {
    if (fresh) std::remove(journal.c_str());  // which nothing could go on with
    throw;
  }
}

}  // namespace

std::string start_path(const std::string& journal) { return journal.empty() ? "" : journal + ".start.safetensors"; }

Beginning begin(Program& program, const Dataset& dataset, const TrainOptions& options, const std::string& start, int64_t rows) {
  Beginning beginning;
  const std::string kept = start_path(options.journal);
  const bool fresh = kept.empty() || !exists(options.journal);
  if (!fresh) {
    if (!options.resume) fail(options.journal, " exists: name another journal, or resume");
    if (start != "zero" && exists(kept)) {
      load_adapter(kept, program);
      return beginning;
    }
    if (start != "readout") return beginning;
  }
  if (start == "readout" || (start == "auto" && suits_a_readout(program, dataset))) {
    try {
      beginning.readout = read_out(program, dataset, rows, options.validation_rows);
    } catch (const Error& error) {
      if (start == "readout") throw;
      std::fprintf(stderr, "mobizo_runner: %s; the run begins without a readout\n", error.what());
    }
  }
  if (!kept.empty())
    beginning.keep = [&program, journal = options.journal, made = beginning.readout.has_value(), fresh] {
      keep_start(program, journal, made, fresh);
    };
  return beginning;
}

}  // namespace mobizo::trainer
