// mobizo_runner: train, evaluate and replay without Python. Exit status: 0, 2 for input that does not fit, 1 for anything else,
// output that cannot be written among it.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>

#include "../files/errors.h"
#include "../files/journal.h"
#include "commands.h"

namespace {

constexpr struct {
  const char* name;
  void (*run)(int, char**);
  const char* about;
} kCommands[] = {
    {"train", mobizo::trainer::train_command, "tune the adapter of a program on a data set, or on texts"},
    {"evaluate", mobizo::trainer::evaluate_command, "score the rows of a split"},
    {"replay", mobizo::trainer::replay_command, "rebuild an adapter from the journal of its run"},
    {"info", mobizo::trainer::info_command, "print what a file says of itself"},
    {"tokenize", mobizo::trainer::tokenize_command, "write texts as a data set of a program"},
    {"generate", mobizo::trainer::generate_command, "let a program answer prompts"},
    {"chat", mobizo::trainer::chat_command, "talk with a program, line by line"},
    {"tokens", mobizo::trainer::tokens_command, "print the ids of a text, or the text of ids"},
};

void print_usage(std::FILE* stream) {
  std::fprintf(stream, "usage: mobizo_runner COMMAND ...\n\n");
  for (const auto& command : kCommands) std::fprintf(stream, "  %-10s %s\n", command.name, command.about);
  std::fprintf(stream, "\nmobizo_runner COMMAND --help tells more.\n");
}

// What the user named does not exist or may not be used, as against a disk that is full or fails.
bool blames_input(int code) {
  for (const int input : {ENOENT, ENOTDIR, EISDIR, EACCES, EPERM, EROFS, ENAMETOOLONG, ELOOP})
    if (code == input) return true;
  return false;
}

// A standard stream that the caller closed stays so: no file is opened in its place, to be read as input or to get what is
// printed.
void keep_standard_streams() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (::fcntl(stream, F_GETFD) < 0) static_cast<void>(::open("/dev/null", stream == STDIN_FILENO ? O_WRONLY : O_RDONLY));
}

// Kernels have up to 200 kB on the stack. The system gives that out page by page, and kills a program to which it has none to
// give: where memory is scarce, an allocation of the heap is to be refused, which is said.
__attribute__((noinline)) void reserve_stack() {
  volatile char pages[256 * 1024];
  for (size_t at = 0; at < sizeof pages; at += 1024) pages[at] = 0;
}

// A full disk behind stdout, or a pipe that nobody reads, is not noticed before the buffer is written.
void finish_output() {
  errno = 0;
  const bool flushed = std::fflush(stdout) == 0;
  const int code = errno;
  if (flushed && std::ferror(stdout) == 0) return;
  throw mobizo::trainer::SystemError(code != 0 ? code : EIO, "cannot write the output");
}

// The exit status of `work`, whose errors are told.
template <typename Work>
int status_of(Work work) {
  try {
    work();
    finish_output();
    return 0;
  } catch (const mobizo::trainer::SystemError& error) {
    std::fprintf(stderr, "mobizo_runner: %s\n", error.what());
    return blames_input(error.code()) ? 2 : 1;
  } catch (const mobizo::trainer::JournalLost& error) {
    std::fprintf(stderr, "mobizo_runner: %s\n", error.what());
    return 1;
  } catch (const mobizo::trainer::Error& error) {
    std::fprintf(stderr, "mobizo_runner: %s\n", error.what());
    return 2;
  } catch (const std::bad_alloc&) {
    std::fputs("mobizo_runner: memory is exhausted\n", stderr);
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mobizo_runner: %s\n", error.what());
    return 1;
  }
}

}  // namespace

int main(int argc, char** argv) {
  reserve_stack();
  keep_standard_streams();
  std::signal(SIGXFSZ, SIG_IGN);  // a file-size limit is then an error of write()
  std::signal(SIGPIPE, SIG_IGN);  // and so is a reader that has gone: it ends no run
  if (argc < 2) {
    print_usage(stderr);
    return 2;
  }
  if (std::strcmp(argv[1], "--help") == 0 || std::strcmp(argv[1], "-h") == 0) return status_of([] { print_usage(stdout); });
  for (const auto& command : kCommands)
    if (std::strcmp(argv[1], command.name) == 0) return status_of([&] { command.run(argc - 1, argv + 1); });
  std::fprintf(stderr, "mobizo_runner: unknown command '%s'\n\n", argv[1]);
  print_usage(stderr);
  return 2;
}
