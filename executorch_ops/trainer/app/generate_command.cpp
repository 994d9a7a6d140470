#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "../files/errors.h"
#include "../loop/generator.h"
#include "../program/adapter.h"
#include "../text/chat.h"
#include "../text/strings.h"
#include "../text/tokenizer_file.h"
#include "commands.h"
#include "options.h"

namespace mobizo::trainer {
namespace {

// Throws Error unless the tokenizer is that of the program or, where that does not say, one whose tokens it has.
TokenizerFile tokenizer_for(const Description& description, const std::string& path) {
  TokenizerFile file(path);
  if (description.tokenizer) file.check(description);
  const int64_t tokens = file.tokenizer().vocabulary_size();
  if (tokens > description.vocabulary)
    fail(path, ": the tokenizer has ", tokens, " tokens, more than the ", description.vocabulary, " of the program's model");
  return file;
}

void print(const std::string& text) {
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (!written || std::fflush(stdout) != 0) throw SystemError(errno, "cannot write the output");
}

// Writes an answer as it comes. Throws SystemError if nobody reads it any longer.
Generated stream(Generator& generator, const Tokenizer& tokenizer, const std::vector<int64_t>& prompt,
                 const GenerateOptions& options, std::string& text) {
  StreamDecoder decoder(tokenizer, /*skip_special=*/true);
  const auto show = [&](const std::string& part) {
    text += part;
    print(part);
    return true;
  };
  const Generated result = generator.generate(prompt, options, [&](int64_t token) { return show(decoder.push(token)); });
  show(decoder.finish());
  print("\n");
  return result;
}

Json as_json(const Generated& generated, const std::string& text) {
  return Json::Object{{"text", text},
                      {"tokens", Json::list(generated.tokens)},
                      {"ended", generated.ended},
                      {"reused", generated.reused},
                      {"prefilled", generated.prefilled},
                      {"prefill_seconds", generated.prefill_seconds},
                      {"decode_seconds", generated.decode_seconds}};
}

// What both commands are told.
struct Told {
  std::string tokenizer, adapter, system;
  GenerateOptions generate;
  int64_t threads = 0;
  bool json = false;

  void add(Options& options) {
    options.text("tokenizer", "FILE", tokenizer, "the model's tokenizer.json; needed");
    options.text("adapter", "FILE", adapter, "the adapter to write with [that of the program]");
    options.text("system", "TEXT", system, "what the conversation begins with [what the chat template says by itself]");
    options.whole("max-new-tokens", generate.max_new_tokens, 1, "most tokens of an answer");
    options.number("temperature", generate.sampling.temperature, "divides the logits; 0 takes the likeliest token");
    options.whole("top-k", generate.sampling.top_k, 0, "sample from so many of the likeliest tokens, 0 for all");
    options.number("top-p", generate.sampling.top_p, "then from the fewest that have this share of the probability");
    options.seed("seed", generate.sampling.seed, "of the random numbers");
    options.whole("threads", threads, 0, "CPU threads, 0 for ExecuTorch's choice");
    options.flag("json", json, "print one JSON object as the last line");
  }
  void check() const {
    if (tokenizer.empty()) fail("--tokenizer is needed");
    check_sampling(generate.sampling);
  }
  std::vector<Message> beginning() const {
    return system.empty() ? std::vector<Message>{} : std::vector<Message>{{"system", system}};
  }
};

// A program that writes, with its tokenizer and the adapter that it was told of.
struct Writing {
  explicit Writing(const std::string& path, const Told& told)
      : program(path, told.threads), generator(program), file(tokenizer_for(program.description(), told.tokenizer)) {
    if (!told.adapter.empty()) load_adapter(told.adapter, program);
  }

  Program program;
  Generator generator;
  TokenizerFile file;
  const Tokenizer& tokenizer = file.tokenizer();
};

void tell_if_off(const Writing& writing, const std::vector<int64_t>& prompt) {
  if (writing.generator.acts(prompt)) return;
  std::fprintf(stderr, "mobizo_runner: the prompt lacks the adapter's invocation tokens: it is off there\n");
}

void print_answers(bool wanted, Json::Array answers) {
  if (wanted) std::printf("%s\n", Json(Json::Object{{"answers", std::move(answers)}}).dump().c_str());
}

bool read_line(std::string& line) {
  line.clear();
  int c = 0;
  while ((c = std::getchar()) != EOF && c != '\n') line += static_cast<char>(c);
  if (std::ferror(stdin) != 0) throw SystemError(errno, "cannot read the standard input");
  if (!line.empty() && line.back() == '\r') line.pop_back();
  return c != EOF || !line.empty();
}

// The tokens of a conversation, of which the oldest questions and their answers go until there is room for another answer.
// Throws Error, the conversation unchanged, if its last question cannot be asked.
std::vector<int64_t> fitting(std::vector<Message>& conversation, const ChatEncoder& chat, const Writing& writing,
                             const GenerateOptions& options) {
  std::vector<Message> messages = conversation;
  const auto context = static_cast<size_t>(writing.program.description().generation->context);
  std::vector<int64_t> tokens = chat.prompt(messages);
  const size_t first = messages.front().role == "system" ? 1 : 0;
  bool forgot = false;
  while (tokens.size() >= context && messages.size() > first + 2) {
    const auto oldest = messages.begin() + static_cast<std::ptrdiff_t>(first);
    messages.erase(oldest, oldest + 2);
    tokens = chat.prompt(messages);
    forgot = true;
  }
  writing.generator.check(tokens, options);
  conversation = std::move(messages);
  if (forgot) std::fprintf(stderr, "mobizo_runner: the context is full: the oldest questions and answers are forgotten\n");
  return tokens;
}

}  // namespace

void generate_command(int argc, char** argv) {
  Told told;
  bool raw = false;
  Options options("generate PROGRAM --tokenizer FILE [OPTION...] PROMPT...",
                  "Answer each prompt, by the chat template that the program carries.");
  told.add(options);
  options.flag("raw", raw, "go on with the prompts as they are, without a chat template");
  const auto given = options.parse(argc, argv, 2, /*more=*/true);
  if (!given) return;
  told.check();
  if (raw && !told.system.empty()) fail("--system: expected none with --raw, which has no chat template to put it in");

  Writing writing(given->front(), told);
  Json::Array answers;
  for (auto prompt = given->begin() + 1; prompt != given->end(); ++prompt) {
    std::vector<Message> messages = told.beginning();
    messages.push_back({"user", *prompt});
    const std::vector<int64_t> tokens = raw ? writing.tokenizer.encode(*prompt, /*add_special=*/true)
                                            : ChatEncoder(writing.program.description(), writing.tokenizer).prompt(messages);
    tell_if_off(writing, tokens);
    std::string text;
    const Generated result = stream(writing.generator, writing.tokenizer, tokens, told.generate, text);
    answers.emplace_back(as_json(result, text));
  }
  print_answers(told.json, std::move(answers));
}

void chat_command(int argc, char** argv) {
  Told told;
  Options options("chat PROGRAM --tokenizer FILE [OPTION...]",
                  "Answer each line of the standard input, as one conversation by the chat template that the program carries.");
  told.add(options);
  const auto given = options.parse(argc, argv, 1);
  if (!given) return;
  told.check();

  Writing writing(given->front(), told);
  const ChatEncoder chat(writing.program.description(), writing.tokenizer);
  std::vector<Message> messages = told.beginning();
  {
    // What --system says is known to fit before anyone is asked.
    std::vector<Message> shortest = messages;
    shortest.push_back({"user", "?"});
    fitting(shortest, chat, writing, told.generate);
  }
  Json::Array answers;
  const auto ask = [] {
    if (isatty(STDIN_FILENO) != 0) print("> ");
  };
  std::string line;
  for (ask(); read_line(line); ask()) {
    if (stripped(line).empty()) continue;
    messages.push_back({"user", line});
    std::vector<int64_t> tokens;
    try {
      tokens = fitting(messages, chat, writing, told.generate);
    } catch (const Error& error) {  // of this line: the next one may do
      std::fprintf(stderr, "mobizo_runner: %s\n", error.what());
      messages.pop_back();
      continue;
    }
    if (answers.empty()) tell_if_off(writing, tokens);
    std::string text;
    const Generated result = stream(writing.generator, writing.tokenizer, tokens, told.generate, text);
    answers.emplace_back(as_json(result, text));
    // An answer of nothing cannot be put to the template.
    const std::string said = kept(*writing.program.description().texts->chat, text);
    if (stripped(said).empty())
      messages.pop_back();
    else
      messages.push_back({"assistant", said});
  }
  print_answers(told.json, std::move(answers));
}

}  // namespace mobizo::trainer
