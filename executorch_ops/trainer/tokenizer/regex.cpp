#include "regex.h"

#include "../files/errors.h"

#ifdef MOBIZO_PCRE2
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "../files/utf8.h"

namespace mobizo::trainer {
namespace {

std::string text_of(int code) {
  PCRE2_UCHAR buffer[256];
  return pcre2_get_error_message(code, buffer, sizeof buffer) < 0 ? message("error ", code)
                                                                  : std::string(reinterpret_cast<const char*>(buffer));
}

struct MatchData {
  explicit MatchData(const pcre2_code* code) : data(pcre2_match_data_create_from_pattern(code, nullptr)) {
    if (data == nullptr) throw std::bad_alloc();
  }
  ~MatchData() { pcre2_match_data_free(data); }
  MatchData(const MatchData&) = delete;
  MatchData& operator=(const MatchData&) = delete;
  pcre2_match_data* data;
};

}  // namespace

struct Regex::Code {
  explicit Code(const std::string& expression) : pattern(expression) {
    const std::string translated = to_pcre2(pattern);
    constexpr uint32_t kOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(pcre2_compile_context_create(nullptr),
                                                                                          pcre2_compile_context_free);
    if (context == nullptr) throw std::bad_alloc();
    pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    int error = 0;
    PCRE2_SIZE at = 0;
    compiled =
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(), kOptions, &error, &at, context.get());
    if (compiled == nullptr) fail("regular expression '", pattern, "': ", text_of(error));
    pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);  // where it cannot be, the interpreter is slower and says the same
  }
  ~Code() { pcre2_code_free(compiled); }
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;

  // Whether there is a match from `start` on.
  bool match(std::string_view text, size_t start, pcre2_match_data* data) const {
    const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    int found = pcre2_match(compiled, subject, text.size(), start, PCRE2_NO_UTF_CHECK, data, nullptr);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT)
      found = pcre2_match(compiled, subject, text.size(), start, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data, nullptr);
    if (found == PCRE2_ERROR_NOMATCH) return false;
    if (found < 0) fail("regular expression '", pattern, "' fails on a text of ", text.size(), " bytes: ", text_of(found));
    return true;
  }

  std::string pattern;
  pcre2_code* compiled = nullptr;
};

void Regex::find_all(std::string_view text, std::vector<Match>& matches) const {
  if (text.empty()) return;
  const MatchData data(code_->compiled);
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data.data);
  const size_t before = matches.size();
  for (size_t at = 0; at <= text.size() && code_->match(text, at, data.data);) {
    const bool again = range[0] == range[1] && matches.size() > before && matches.back().end == range[1];
    if (again) {  // nothing, where the match before ended
      at += at < text.size() ? code_point_at(text, at).length : 1;
    } else {
      matches.push_back({range[0], range[1]});
      at = range[1];
    }
  }
}

bool Regex::supported() { return true; }

#else

namespace mobizo::trainer {

struct Regex::Code {
  explicit Code(const std::string& pattern) {
    fail("the regular expression '", pattern, "' needs PCRE2, without which this program was built");
  }
};

void Regex::find_all(std::string_view, std::vector<Match>&) const {}

bool Regex::supported() { return false; }

#endif

Regex::Regex(const std::string& pattern) : code_(std::make_unique<Code>(pattern)) {}
Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;

}  // namespace mobizo::trainer
