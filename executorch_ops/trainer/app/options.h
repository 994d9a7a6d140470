// Command-line options: declared once, with the place that takes the value and a line of help, which ends with the value that
// is there: the default.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace mobizo::trainer {

class Options {
 public:
  // usage: what follows the program's name; about: one sentence.
  Options(std::string usage, std::string about) : usage_(std::move(usage)), about_(std::move(about)) {}

  void flag(const char* name, bool& target, const std::string& help, bool value = true);
  void text(const char* name, const char* value, std::string& target, const std::string& help);
  // one of `choices`, parted by '|'
  void choice(const char* name, const char* choices, std::string& target, const std::string& help);
  void number(const char* name, double& target, const std::string& help);
  void whole(const char* name, int64_t& target, int64_t least, const std::string& help);
  void whole(const char* name, std::optional<int64_t>& target, int64_t least, const std::string& help);
  // any 64-bit integer, signed or unsigned
  // Any integer of 64 bits, signed or not. size, if given: of that number, without its sign.
  void seed(const char* name, int64_t& target, const std::string& help, uint64_t* size = nullptr);

  // Fills the targets and returns the `files` other arguments, and with `more` those behind them; nothing if --help was given,
  // after printing it. Throws Error.
  std::optional<std::vector<std::string>> parse(int argc, char** argv, size_t files, bool more = false) const;

 private:
  struct Option {
    std::string name, value, help;  // value: "" for a flag
    std::function<void(const std::string&)> set;
  };
  void print_help() const;

  std::string usage_, about_;
  std::vector<Option> options_;
};

}  // namespace mobizo::trainer
