// What the cases share: the instruction sets of this machine, guarded memory, reproducible random values, and the count of
// results.
#pragma once

#include <cinttypes>
#include <cstdio>
#include <initializer_list>
#include <random>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "../../csrc/kernels/isa.h"
#include "guarded_memory.h"
#include "reference.h"

namespace mobizo {

// The kernels of every instruction set that this build has and this machine can run, best first.
inline std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> available;
#if defined(MOBIZO_HAS_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    available.push_back(&avx512::kernels);
#endif
#if defined(MOBIZO_HAS_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) available.push_back(&avx2::kernels);
#endif
#if defined(MOBIZO_HAS_NEON)
  available.push_back(&neon::kernels);
#endif
  available.push_back(&scalar::kernels);
  return available;
}

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}
inline const char* name_of(DType dtype) {
  return dtype == DType::kFloat32 ? "float32" : dtype == DType::kBFloat16 ? "bfloat16" : "float16";
}
inline std::string_view name_of(Distribution d) { return kDistributionNames[static_cast<size_t>(d)]; }

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
constexpr Distribution kDistributions[] = {Distribution::kGaussian, Distribution::kRademacher, Distribution::kOuter};
constexpr Distribution kFlatDistributions[] = {Distribution::kGaussian, Distribution::kRademacher};

// Sizes of a parameter. Directions that know no rows and columns take it as flat.
struct Shape {
  int64_t rows, columns;
  int64_t numel() const { return rows * columns; }
};

// Elements in guarded memory. On the side where no page is, a few more guard them, which also shift them off every vector
// boundary. All bits are set at first, a NaN in each type that no kernel ever writes: what was forgotten, and what should have
// been left alone, shows.
class Buffer {
 public:
  static constexpr int64_t kGuard = 3;

  Buffer(DType dtype, int64_t size)
      : dtype_(dtype),
        size_(size),
        width_(dtype == DType::kFloat32 ? 4 : 2),
        bytes_(static_cast<size_t>((size + kGuard) * width_)),
        first_(bytes_.at_end() ? kGuard : 0) {}

  DType dtype() const { return dtype_; }
  int64_t size() const { return size_; }
  void* data() { return bytes_.data() + first_ * width_; }

  uint32_t bits(int64_t i) const {
    uint32_t value = 0;
    std::memcpy(&value, bytes_.data() + (i + first_) * width_, static_cast<size_t>(width_));
    return value;
  }
  float operator[](int64_t i) const { return reference::widen(dtype_, bits(i)); }
  void set_bits(int64_t i, uint32_t value) {
    std::memcpy(bytes_.data() + (i + first_) * width_, &value, static_cast<size_t>(width_));
  }
  void set(int64_t i, float value) { set_bits(i, reference::narrow(dtype_, value)); }

  bool poisoned(int64_t i) const { return bits(i) == (width_ == 4 ? 0xFFFFFFFFu : 0xFFFFu); }
  bool guards_intact() const {
    for (int64_t i = 0; i < kGuard; ++i)
      if (!poisoned(first_ > 0 ? i - kGuard : size_ + i)) return false;
    return true;
  }

 private:
  DType dtype_;
  int64_t size_, width_;
  Guarded<uint8_t> bytes_;
  int64_t first_;  // of the elements: behind the guard, or in front of it
};

// The same sequence on every platform, which the distributions of <random> do not promise.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t seed() { return static_cast<int64_t>(engine_()); }
  float uniform() { return static_cast<float>(static_cast<int64_t>(engine_()) >> 40) * 0x1p-23f; }  // [-1, 1)
  int64_t pick(std::initializer_list<int64_t> choices) { return choices.begin()[engine_() % choices.size()]; }

 private:
  std::mt19937_64 engine_;
};

// Of one and of many rows and columns, whole vectors and tiles and what is left over.
constexpr Shape kShapes[] = {{1, 1},    {7, 1},   {1, 8},    {17, 1},   {9, 7},    {13, 10}, {8, 125},
                             {16, 128}, {3, 683}, {5003, 1}, {1, 5003}, {300, 16}, {39, 131}};

// Seeds and coefficients that updates take the first of.
class Directions {
 public:
  explicit Directions(Random& random) {
    for (int i = 0; i < 34; ++i) {
      seeds_.push_back(random.seed());
      coeffs_.push_back(random.uniform());
    }
  }
  Guarded<int64_t> seeds(int64_t count) const { return Guarded<int64_t>({seeds_.begin(), seeds_.begin() + count}); }
  Guarded<float> coeffs(int64_t count) const { return Guarded<float>({coeffs_.begin(), coeffs_.begin() + count}); }

 private:
  std::vector<int64_t> seeds_ = {0, 7, -1, INT64_MAX, INT64_MIN, -6148914691236517206};
  std::vector<float> coeffs_ = {0.3f, -1.7f, 0.0f, 1e-3f, -0.01f, 2.5f};
};

inline PerturbArgs perturb_args(DType dtype, const Shape& shape, const Guarded<int64_t>& seeds, const Guarded<float>& coeffs,
                                int64_t stream, float decay, Distribution distribution) {
  const auto count = static_cast<int64_t>(seeds.size());
  PerturbArgs args{nullptr, dtype, shape.numel(), seeds.data(), coeffs.data(), count, stream, decay, distribution, nullptr};
  args.columns = shape.columns;
  return args;
}

// Signs of directions "outer", which live as long as the kernels that read them: no more than sign_bytes promises.
template <typename Args>
Guarded<uint8_t> make_signs(const Kernels& kernels, Args& args, const int64_t* seeds, int64_t count) {
  if (args.distribution != Distribution::kOuter) return Guarded<uint8_t>(0);
  const int64_t numel = args.numel / args.columns + args.columns;
  Guarded<uint8_t> signs(static_cast<size_t>(count * sign_bytes(numel)));
  kernels.signs({seeds, count, args.stream, numel, signs.data()}, 0, count);
  args.signs = signs.data();
  return signs;
}

// The task that element e of a parameter belongs to.
inline size_t task_of(const PerturbArgs& args, int64_t e) {
  if (args.distribution != Distribution::kOuter) return static_cast<size_t>(e / kTaskElements);
  const MatrixTiles tiles = matrix_tiles(args.numel / args.columns, args.columns, args.count);
  return static_cast<size_t>(e / args.columns / tiles.height * tiles.across + e % args.columns / tiles.width);
}

// FNV-1a.
class Digest {
 public:
  void add(uint64_t value) {
    for (int byte = 0; byte < 8; ++byte) value_ = (value_ ^ (value >> 8 * byte & 0xFF)) * 0x100000001B3u;
  }
  void add(const Buffer& buffer) {
    for (int64_t i = 0; i < buffer.size(); ++i) add(buffer.bits(i));
  }
  void add(const Guarded<double>& values) {
    for (size_t i = 0; i < values.size(); ++i) {
      uint64_t bits;
      std::memcpy(&bits, values.data() + i, sizeof bits);
      add(bits);
    }
  }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xCBF29CE484222325u;
};

// One instruction set under test, and a digest of the bits that it made.
struct Target {
  const Kernels& kernels;
  Digest digest{};
};
using Targets = std::vector<Target>;

// Counts checks; a check is its name and what is wrong, nothing if nothing is.
class Report {
 public:
  void check(const std::string& name, const std::string& problem) {
    ++(problem.empty() ? passed_ : failed_);
    if (!problem.empty()) std::printf("FAILED %s: %s\n", name.c_str(), problem.c_str());
  }
  int finish() const {
    std::printf("%d passed, %d failed\n", passed_, failed_);
    return failed_ > 0 || passed_ == 0;
  }

 private:
  int passed_ = 0, failed_ = 0;
};

// Where the elements of `got` are not those bits, or its guards were written to.
inline std::string difference(const Buffer& got, const std::vector<uint32_t>& expected) {
  for (int64_t i = 0; i < got.size(); ++i) {
    const uint32_t bits = expected[static_cast<size_t>(i)];
    if (got.bits(i) != bits) return text("element ", i, " is ", std::hex, "0x", got.bits(i), ", expected 0x", bits);
  }
  return got.guards_intact() ? "" : "wrote outside of the output";
}

// task(i) for begin <= i < end, from the last on, by two threads in turn: each bit that they share is a race.
template <typename Task>
void by_two_threads(int64_t begin, int64_t end, const Task& task) {
  const auto every_other = [&](int64_t last) {
    for (int64_t i = last; i >= begin; i -= 2) task(i);
  };
  std::thread other([&] { every_other(end - 2); });
  every_other(end - 1);
  other.join();
}

// Runs tasks [begin, end) at once, or one at a time.
template <typename Args>
void run(void (*kernel)(const Args&, int64_t, int64_t), const Args& args, int64_t begin, int64_t end, bool piecewise) {
  if (!piecewise) return kernel(args, begin, end);
  by_two_threads(begin, end, [&](int64_t task) { kernel(args, task, task + 1); });
}

// The parallel_for of a binding with one thread, or with two and a task at a time.
inline auto parallel_for(bool piecewise) {
  return [piecewise](int64_t begin, int64_t end, int64_t, const auto& f) {
    if (begin >= end) return;
    if (!piecewise) return f(begin, end);
    by_two_threads(begin, end, [&](int64_t task) { f(task, task + 1); });
  };
}

}  // namespace mobizo
