// What is made of losses before they weigh directions. mobizo_kernels/zo/objective.py is the twin.
#pragma once

#include <string>
#include <vector>

namespace mobizo::trainer {

// Losses [G] by which directions are weighed: "none" leaves them; "standardise" takes off their mean and divides by their
// standard deviation; "rank" puts evenly spaced numbers from -0.5 to 0.5 in their place, equal losses sharing the mean of their
// ranks. Equal losses alone become zeros, and what is not finite stays.
std::vector<double> shaped(const std::vector<float>& losses, const std::string& shaping);
// Throws Error if there is no shaping of that name.
void check_shaping(const std::string& shaping);

}  // namespace mobizo::trainer
