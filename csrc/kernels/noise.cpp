// noise: materialises z, for tests, debugging and whoever wants the values themselves.
#include "../noise/visit.h"
#include "tile.h"

namespace mobizo::MOBIZO_ISA {
namespace {

void outer_noise(const NoiseArgs& args, int64_t begin, int64_t end) {
  const int64_t rows = args.numel / args.columns;
  with_type(args.dtype, [&](auto type) {
    for (int64_t task = begin; task < end; ++task) {
      const Tile tile = tile_of(args, task);
      auto* out = static_cast<decltype(type)*>(args.out) + tile.first;
      for (int64_t row = 0; row < tile.rows; ++row, out += tile.stride) {
        const F32 sign = flip_signs_from(broadcast(1.0f), args.signs, tile.row + row);
        float u[kLanes];
        store(u, sign);
        each_vector(tile.count, [&](int64_t i, auto... n) {
          store(out + i, flip_signs_from(broadcast(u[0]), args.signs, rows + tile.column + i), n...);
        });
      }
    }
  });
}

}  // namespace

void noise(const NoiseArgs& args, int64_t begin, int64_t end) {
  if (args.distribution == Distribution::kOuter) return outer_noise(args, begin, end);
  const NoiseStream stream = noise_stream(static_cast<uint64_t>(args.seed), static_cast<uint64_t>(args.stream));
  const int64_t first = begin * kTaskElements, last = min(end * kTaskElements, args.numel);
  with_type(args.dtype, [&](auto type) {
    auto* out = static_cast<decltype(type)*>(args.out) + first;
    visit_noise(args.distribution, stream, first, last - first, [&](int64_t i, F32 z, auto... n) { store(out + i, z, n...); });
  });
}

}  // namespace mobizo::MOBIZO_ISA
