#include "options.h"

#include <getopt.h>

#include <charconv>
#include <cstdint>
#include <cstdio>

#include "../files/errors.h"

namespace mobizo::trainer {
namespace {

template <typename T>
bool parse_whole(const std::string& text, T& value) {
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, value);
  return result.ec == std::errc() && result.ptr == end;
}

int64_t checked_whole(const std::string& name, const std::string& text, int64_t least) {
  int64_t value = 0;
  if (!parse_whole(text, value) || value < least)
    fail("--", name, " must be a whole number of at least ", least, ", got '", text, "'");
  return value;
}

}  // namespace

void Options::flag(const char* name, bool& target, const std::string& help, bool value) {
  options_.push_back(
      {name, "", target == value ? help + " [the default]" : help, [&target, value](const std::string&) { target = value; }});
}

void Options::text(const char* name, const char* value, std::string& target, const std::string& help) {
  options_.push_back({name, value, help, [&target](const std::string& text) { target = text; }});
}

void Options::choice(const char* name, const char* choices, std::string& target, const std::string& help) {
  options_.push_back({name, choices, message(help, " [", target, "]"), [&target, name, choices](const std::string& text) {
                        const std::string all = message('|', choices, '|');
                        if (text.empty() || all.find('|' + text + '|') == std::string::npos)
                          fail("--", name, " must be ", choices, ", got '", text, "'");
                        target = text;
                      }});
}

void Options::number(const char* name, double& target, const std::string& help) {
  options_.push_back({name, "NUMBER", message(help, " [", target, "]"), [&target, name](const std::string& text) {
                        std::istringstream stream(text);
                        stream.imbue(std::locale::classic());
                        if (!(stream >> target) || stream.peek() != std::istringstream::traits_type::eof())
                          fail("--", name, " must be a number, got '", text, "'");
                      }});
}

void Options::whole(const char* name, int64_t& target, int64_t least, const std::string& help) {
  options_.push_back({name, "N", message(help, " [", target, "]"),
                      [&target, name, least](const std::string& text) { target = checked_whole(name, text, least); }});
}

void Options::whole(const char* name, std::optional<int64_t>& target, int64_t least, const std::string& help) {
  options_.push_back(
      {name, "N", help, [&target, name, least](const std::string& text) { target = checked_whole(name, text, least); }});
}

void Options::seed(const char* name, int64_t& target, const std::string& help, uint64_t* size) {
  options_.push_back({name, "N", message(help, " [", target, "]"), [&target, name, size](const std::string& text) {
                        uint64_t bits = 0;
                        if (parse_whole(text, target))
                          bits = target < 0 ? uint64_t{0} - static_cast<uint64_t>(target) : static_cast<uint64_t>(target);
                        else if (parse_whole(text, bits))
                          target = static_cast<int64_t>(bits);
                        else
                          fail("--", name, " must be a 64-bit integer, got '", text, "'");
                        if (size != nullptr) *size = bits;
                      }});
}

std::optional<std::vector<std::string>> Options::parse(int argc, char** argv, size_t files, bool more) const {
  constexpr int kFirst = 256;  // beyond every character
  std::vector<option> table;
  for (const Option& o : options_)
    table.push_back(
        {o.name.c_str(), o.value.empty() ? no_argument : required_argument, nullptr, kFirst + static_cast<int>(table.size())});
  table.push_back({"help", no_argument, nullptr, 'h'});
  table.push_back({});
  opterr = 0;
  optind = 1;
  // NOLINTNEXTLINE(concurrency-mt-unsafe): a command reads its arguments once, before it has threads
  for (int found; (found = getopt_long(argc, argv, ":h", table.data(), nullptr)) != -1;) {
    if (found == 'h') {
      print_help();
      return std::nullopt;
    }
    if (found == ':') fail(argv[optind - 1], " needs a value");
    if (found == '?') fail("unknown option '", argv[optind - 1], "'; see --help");
    options_[static_cast<size_t>(found - kFirst)].set(optarg == nullptr ? "" : optarg);
  }
  std::vector<std::string> rest(argv + optind, argv + argc);
  if (more && rest.size() < files)
    fail("expected at least ", files, " arguments, got ", rest.size(), "; usage: mobizo_runner ", usage_);
  if (!more && rest.size() != files) fail("expected ", files, " files, got ", rest.size(), "; usage: mobizo_runner ", usage_);
  return rest;
}

void Options::print_help() const {
  std::printf("usage: mobizo_runner %s\n\n%s\n\n", usage_.c_str(), about_.c_str());
  for (const Option& o : options_) {
    const std::string left = "--" + o.name + (o.value.empty() ? "" : " " + o.value);
    std::printf("  %-40s %s\n", left.c_str(), o.help.c_str());
  }
  std::printf("  %-40s %s\n", "--help", "print this and exit");
}

}  // namespace mobizo::trainer
