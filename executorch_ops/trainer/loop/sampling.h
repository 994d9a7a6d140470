// How the next token is chosen from its logits: as mobizo_kernels/generation/sampling.py does, in float64.
#pragma once

#include <cstdint>
#include <vector>

namespace mobizo::trainer {

// The filters are applied in the order of the members.
struct Sampling {
  double temperature = 0;  // divides the logits; 0 takes the likeliest token, whatever the rest says
  int64_t top_k = 0;       // sample from so many of the likeliest tokens; 0 for all
  double top_p = 1;        // then from the fewest of the likeliest tokens that have this share of the probability
  int64_t seed = 0;        // of the random numbers
};

// Throws Error, naming the member, if one is out of range.
void check_sampling(const Sampling& sampling);

// Number n of those in [0, 1) that choose the tokens of an answer: the highest 53 bits of output n of SplitMix64.
double uniform_of(int64_t seed, int64_t n);

// The next token. uniform: in [0, 1); not read where the temperature is 0. Throws Error if the logits have no greatest that is
// finite.
int64_t choose(const std::vector<float>& logits, const Sampling& sampling, double uniform);

}  // namespace mobizo::trainer
