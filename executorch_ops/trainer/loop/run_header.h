// What the header of a journal says of a run: everything that decides on its outcome.
#pragma once

#include "../files/journal.h"
#include "../program/dataset.h"
#include "../program/program.h"
#include "trainer.h"

namespace mobizo::trainer {

// The header of a run that begins with the adapter that the program has now.
Json journal_header(Program& program, const Dataset& dataset, const TrainOptions& options);

// Throws Error, naming what differs, unless the updates of the journal are those of the program's adapter, which must be the
// one with which the run began. What the journal does not say is not compared.
void check_replayable(const std::string& path, const Journal& journal, Program& program);

}  // namespace mobizo::trainer
