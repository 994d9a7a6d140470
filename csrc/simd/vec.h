// The thin vector type. A kernel includes this header, is compiled once per instruction set with MOBIZO_ISA naming it, and is
// written once in terms of:
//
//   F32, U32            kLanes float32 / uint32 values (16 on AVX-512, 8 elsewhere)
//   Mask                one truth value per lane
//   Word                one 32-bit Philox word for each of kCounters = kLanes / 2 consecutive counters
//   load, store         float32 values from and to float, BFloat16 and Float16 memory (round to nearest even), whole or first n
//   fma(a, b, c)        a * b + c with one rounding
//   a < b               a Mask, false where either is NaN
//   multiply, high, low the 64-bit product of a Word and a constant, and its two halves
//   pair, interleave    how Words become lanes in memory order (see below)
//   flip_signs(v, bits) v with the sign of lane i flipped where bit i of the bit stream at `bits` is set
//   load_transposed(p, stride, out)  kLanes rows of four values that lie `stride` apart, as four vectors: out[j] holds p[j],
//                       p[stride + j], p[2 * stride + j], ...
//   load_bits(bits, first, stride)   in lane i the bits from number first + i * stride of the bit stream on, the first of them
//                       lowest, 25 at least; reads four bytes per lane
//   sum_lanes(out, a, b, c, d)  out[0..3] = the sums over the lanes of four vectors
//
// pair(w0, w2) puts the words w0 and w2 of each counter side by side; interleave(x, y) merges x = (x0, x2 per counter) and
// y = (y1, y3 per counter) so that the four values of each counter stand together and the counters ascend. Which counter sits
// in which lane in between is the business of each instruction set (first_counters), chosen so that interleave is two unpacks.
#pragma once

#include "types.h"

#if defined(MOBIZO_ISA_AVX512)
#include "avx512.h"
#elif defined(MOBIZO_ISA_AVX2)
#include "avx2.h"
#elif defined(MOBIZO_ISA_NEON)
#include "neon.h"
#elif defined(MOBIZO_ISA_SCALAR)
#include "scalar.h"
#else
#error "define one of MOBIZO_ISA_SCALAR, MOBIZO_ISA_AVX2, MOBIZO_ISA_AVX512, MOBIZO_ISA_NEON"
#endif
