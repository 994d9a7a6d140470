// What a run of the command line begins with, and the file beside its journal in which that is kept.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "../loop/readout.h"
#include "../loop/trainer.h"

namespace mobizo::trainer {

// Beside the journal; "" without one.
std::string start_path(const std::string& journal);

struct Beginning {
  std::optional<Readout> readout;  // if one was made
  // Keeps the start, or removes that of an earlier run. To be called when the journal is open: what other runs keep is then
  // safe, and the journal has said that the start is its own.
  std::function<void()> keep = [] {};
};

// Gives the program what its steps go on from: a run that goes on takes what is kept. start: "readout", "zero" or, for the
// first where it can be made, "auto". rows: most that a readout is made of.
Beginning begin(Program& program, const Dataset& dataset, const TrainOptions& options, const std::string& start, int64_t rows);

}  // namespace mobizo::trainer
