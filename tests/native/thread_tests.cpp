// What several threads may do at once with mobizo.h, for ThreadSanitizer to watch; what they find is compared with what one
// finds.
//
//   thread_tests PROGRAM DATASET TOKENIZER FOLDER
//
// PROGRAM is one that writes, and has the tokens of TOKENIZER. Journals and adapters go to FOLDER. Ops run on the thread that
// calls: how ExecuTorch's pool hands out work is hidden from ThreadSanitizer, which its libraries are built without.
//
// Prints one line for each failed check, and the count. Exit status 0 if nothing failed.
#include <atomic>
#include <functional>
#include <stdexcept>

#include "../../executorch_ops/trainer/c_interface/mobizo.h"
#include "harness.h"

namespace mobizo {
namespace {

constexpr int64_t kThreads = 1;
const std::string kPrompt = "The film is dull, part 1. It was";

// Throws unless the last call of this thread went well.
void expect_ok(mobizo_status status) {
  if (status != MOBIZO_OK) throw std::runtime_error(text(mobizo_status_name(status), ": ", mobizo_last_message()));
}

std::vector<int64_t> taken(int64_t* ids, int64_t count) {
  const std::vector<int64_t> copy(ids, ids + count);
  mobizo_free(ids);
  return copy;
}

// Runs works at once, each on a thread of its own. Throws what one of them threw.
void at_once(const std::vector<std::function<void()>>& works) {
  std::vector<std::exception_ptr> errors(works.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < works.size(); ++i)
    threads.emplace_back([&, i] {
      try {
        works[i]();
      } catch (...) {
        errors[i] = std::current_exception();
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
}

class Tokenizer {
 public:
  explicit Tokenizer(const std::string& path) { expect_ok(mobizo_tokenizer_open(path.c_str(), &handle_)); }
  ~Tokenizer() { mobizo_tokenizer_close(handle_); }
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;
  mobizo_tokenizer* handle() const { return handle_; }

  std::vector<int64_t> encode(const std::string& said) const {
    int64_t *ids = nullptr, count = 0;
    expect_ok(mobizo_tokenizer_encode(handle_, said.data(), said.size(), /*add_special=*/1, &ids, &count));
    return taken(ids, count);
  }
  std::string decode(const std::vector<int64_t>& ids) const {
    char* said = nullptr;
    expect_ok(mobizo_tokenizer_decode(handle_, ids.data(), static_cast<int64_t>(ids.size()), 1, &said, nullptr));
    std::string copy = said;
    mobizo_free(said);
    return copy;
  }

 private:
  mobizo_tokenizer* handle_ = nullptr;
};

class Program {
 public:
  explicit Program(const std::string& path) { expect_ok(mobizo_program_open(path.c_str(), kThreads, &handle_)); }
  ~Program() { mobizo_program_close(handle_); }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  mobizo_program* handle() const { return handle_; }

  mobizo_status train(const std::string& dataset, int64_t seed, const std::string& journal) {
    mobizo_train_options options;
    expect_ok(mobizo_train_options_init(&options, sizeof options));
    options.steps = 4;
    options.eval_every = 2;
    options.run_seed = seed;
    if (!journal.empty()) options.journal = journal.c_str();
    return mobizo_train(handle_, dataset.c_str(), &options, nullptr, nullptr);
  }
  std::vector<float> values() {
    int64_t count = 0;
    expect_ok(mobizo_adapter_size(handle_, &count));
    std::vector<float> values(static_cast<size_t>(count));
    expect_ok(mobizo_adapter_get(handle_, values.data(), count));
    return values;
  }
  std::vector<int64_t> write(const Tokenizer& tokenizer) {
    mobizo_generate_options options;
    expect_ok(mobizo_generate_options_init(&options, sizeof options));
    options.max_new_tokens = 6;
    const std::vector<int64_t> prompt = tokenizer.encode(kPrompt);
    mobizo_generated generated{};
    generated.size = sizeof generated;
    int64_t* tokens = nullptr;
    expect_ok(mobizo_generate(handle_, tokenizer.handle(), prompt.data(), static_cast<int64_t>(prompt.size()), &options,
                              nullptr, nullptr, &generated, &tokens));
    return taken(tokens, generated.tokens);
  }

 private:
  mobizo_program* handle_ = nullptr;
};

struct Files {
  std::string program, dataset, tokenizer, folder;
};

// Opened, trained, written with and saved: of two programs at once, then of each alone.
void two_programs(const Files& files, Report& report) {
  const Tokenizer tokenizer(files.tokenizer);
  struct Found {
    std::vector<float> values;
    std::vector<int64_t> tokens;
  };
  const auto work = [&](int64_t seed, const char* name) {
    const std::string stem = text(files.folder, "/", name, seed);
    Program program(files.program);
    expect_ok(program.train(files.dataset, seed, stem + ".journal"));
    expect_ok(mobizo_adapter_save(program.handle(), (stem + ".safetensors").c_str()));
    return Found{program.values(), program.write(tokenizer)};
  };
  Found first, second;
  at_once({[&] { first = work(1, "both"); }, [&] { second = work(2, "both"); }});
  for (const auto& [seed, both] : {std::pair{1, &first}, std::pair{2, &second}}) {
    const Found alone = work(seed, "alone");
    report.check(text("adapter of seed ", seed), both->values == alone.values ? "" : "other numbers than alone");
    report.check(text("tokens of seed ", seed), both->tokens == alone.tokens ? "" : "other tokens than alone");
  }
  report.check("two seeds", first.values != second.values ? "" : "one adapter");
}

// Another thread ends each call of a program, again and again, and finds it busy.
void cancelled(const Files& files, Report& report) {
  Program program(files.program);
  const auto ended = [&](const char* name, const std::function<mobizo_status()>& call) {
    std::atomic<bool> over{false};
    mobizo_status status = MOBIZO_OK;
    bool busy = false;
    at_once({[&] {
               do {
                 status = call();  // may be over before the other thread runs, or come while that one uses the program
               } while (status == MOBIZO_OK || status == MOBIZO_BUSY);
               over = true;
             },
             [&] {
               while (!over) {
                 int64_t count = 0;
                 const mobizo_status found = mobizo_adapter_size(program.handle(), &count);
                 busy |= found == MOBIZO_BUSY;
                 if (found != MOBIZO_OK && found != MOBIZO_BUSY) throw std::runtime_error(mobizo_last_message());
                 if (busy) expect_ok(mobizo_cancel(program.handle()));
               }
             }});
    report.check(name, status == MOBIZO_CANCELLED ? "" : mobizo_status_name(status));
  };
  for (int i = 0; i < 3; ++i) {
    ended("evaluation",
          [&] { return mobizo_evaluate(program.handle(), files.dataset.c_str(), "test", 0, nullptr, nullptr, nullptr); });
    ended("training", [&] { return program.train(files.dataset, 3, ""); });
  }
  expect_ok(mobizo_evaluate(program.handle(), files.dataset.c_str(), "test", 0, nullptr, nullptr, nullptr));
}

// One tokenizer, by any number of threads, closed while they are at work.
void one_tokenizer(const Files& files, Report& report) {
  auto tokenizer = std::make_unique<Tokenizer>(files.tokenizer);
  std::vector<std::string> said;
  for (int i = 0; i < 20; ++i) said.push_back(text(kPrompt, " part ", i, " \xf0\x9f\x98\x80 caf\xc3\xa9\n\n"));
  std::vector<std::vector<int64_t>> alone;
  for (const std::string& line : said) alone.push_back(tokenizer->encode(line));
  std::atomic<int> other{0}, working{0};
  const auto work = [&] {
    for (size_t i = 0; i < said.size(); ++i) {
      if (tokenizer->encode(said[i]) != alone[i] || tokenizer->decode(alone[i]) != said[i]) ++other;
      ++working;
    }
  };
  at_once({work, work, work});
  report.check("one tokenizer in three threads", other == 0 ? "" : text(other.load(), " other answers"));

  mobizo_tokenizer* handle = tokenizer->handle();
  const auto until_closed = [&] {
    int64_t *ids = nullptr, count = 0;
    mobizo_status status = MOBIZO_OK;
    while ((status = mobizo_tokenizer_encode(handle, said[0].data(), said[0].size(), 0, &ids, &count)) == MOBIZO_OK) {
      mobizo_free(ids);
      ++working;
    }
    if (status != MOBIZO_INVALID) throw std::runtime_error(mobizo_last_message());
  };
  at_once({until_closed, until_closed, [&, before = working.load()] {
             while (working < before + 10) std::this_thread::yield();
             tokenizer.reset();
           }});
}

// Sentences are those of the thread that failed.
void messages(const Files& files, Report& report) {
  const auto work = [&](const std::string& name) {
    return [&, name] {
      for (int i = 0; i < 100; ++i) {
        char* json = nullptr;
        const std::string path = text(files.folder, "/", name, i);
        if (mobizo_file_info(path.c_str(), &json) != MOBIZO_SYSTEM) throw std::runtime_error("a file that is not there");
        if (std::string(mobizo_last_message()).find(path) == std::string::npos)
          throw std::runtime_error(text("expected ", path, ", got ", mobizo_last_message()));
        expect_ok(mobizo_file_info(files.dataset.c_str(), &json));
        mobizo_free(json);
      }
    };
  };
  at_once({work("one"), work("two"), work("three")});
  report.check("messages of three threads", "");
}

}  // namespace
}  // namespace mobizo

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: thread_tests PROGRAM DATASET TOKENIZER FOLDER\n");
    return 2;
  }
  mobizo::Report report;
  const mobizo::Files files{argv[1], argv[2], argv[3], argv[4]};
  for (const auto cases : {mobizo::two_programs, mobizo::cancelled, mobizo::one_tokenizer, mobizo::messages}) {
    try {
      cases(files, report);
    } catch (const std::exception& error) {
      report.check("threads", error.what());
    }
  }
  return report.finish();
}
