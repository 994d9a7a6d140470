// mobizo_runner: train, evaluate and replay without Python. Exit status: 0, 2 for input that does not fit, 1 for anything else.
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>

#include "commands.h"
#include "errors.h"

namespace {

constexpr struct {
  const char* name;
  void (*run)(int, char**);
  const char* about;
} kCommands[] = {
    {"train", mobizo::trainer::train_command, "tune the adapter of a program on a data set"},
    {"evaluate", mobizo::trainer::evaluate_command, "score the rows of a split"},
    {"replay", mobizo::trainer::replay_command, "rebuild an adapter from the journal of its run"},
    {"info", mobizo::trainer::info_command, "print what a file says of itself"},
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

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // a file-size limit is then an error of write()
  if (argc < 2 || std::strcmp(argv[1], "--help") == 0 || std::strcmp(argv[1], "-h") == 0) {
    print_usage(argc < 2 ? stderr : stdout);
    return argc < 2 ? 2 : 0;
  }
  for (const auto& command : kCommands) {
    if (std::strcmp(argv[1], command.name) != 0) continue;
    try {
      command.run(argc - 1, argv + 1);
      return 0;
    } catch (const mobizo::trainer::SystemError& error) {
      std::fprintf(stderr, "mobizo_runner: %s\n", error.what());
      return blames_input(error.code()) ? 2 : 1;
    } catch (const mobizo::trainer::Error& error) {
      std::fprintf(stderr, "mobizo_runner: %s\n", error.what());
      return 2;
    } catch (const std::exception& error) {
      std::fprintf(stderr, "mobizo_runner: %s\n", error.what());
      return 1;
    }
  }
  std::fprintf(stderr, "mobizo_runner: unknown command '%s'\n\n", argv[1]);
  print_usage(stderr);
  return 2;
}
