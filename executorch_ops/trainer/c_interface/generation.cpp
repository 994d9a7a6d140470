// Writing with a program, and conversations as its tokens.
#include "../loop/generator.h"
#include "../text/chat.h"
#include "handles.h"

namespace mobizo::trainer::c_interface {
namespace {

mobizo_generate_options defaults() {
  const GenerateOptions options;
  const Sampling& sampling = options.sampling;
  return {sizeof(mobizo_generate_options),
          options.max_new_tokens,
          sampling.temperature,
          sampling.top_k,
          sampling.top_p,
          sampling.seed};
}

int64_t as_number(const std::string& ended) {
  if (ended == "stop") return MOBIZO_ENDED_STOP;
  if (ended == "length") return MOBIZO_ENDED_LENGTH;
  return ended == "context" ? MOBIZO_ENDED_CONTEXT : MOBIZO_ENDED_CALLER;
}

}  // namespace
}  // namespace mobizo::trainer::c_interface

using namespace mobizo::trainer;
using namespace mobizo::trainer::c_interface;

mobizo_status mobizo_generate_options_init(mobizo_generate_options* options, uint64_t size) {
  return guarded([&] { initialize(options, size, defaults()); });
}

mobizo_status mobizo_generate(mobizo_program* program, mobizo_tokenizer* tokenizer, const int64_t* prompt, int64_t count,
                              const mobizo_generate_options* options, mobizo_on_token on_token, void* user,
                              mobizo_generated* generated, int64_t** tokens) {
  return guarded([&] {
    const ProgramUse use(program);
    std::shared_ptr<const TokenizerFile> open;
    std::optional<StreamDecoder> decoder;
    if (tokenizer != nullptr) {
      open = tokenizer_for(use.program(), tokenizer);
      decoder.emplace(open->tokenizer(), /*skip_special=*/true);
    }
    if (count < 1) fail("count must be at least 1, got ", count);
    given(prompt, "prompt");
    check_wanted(generated, "generated");
    const mobizo_generate_options o = taken(options, "options", defaults());
    const GenerateOptions checked{o.max_new_tokens, {o.temperature, o.top_k, o.top_p, o.seed}};
    int64_t written = 0;
    const auto tell = [&](int64_t token) {
      const std::string text = decoder ? decoder->push(token) : std::string();
      ++written;
      return on_token == nullptr || on_token(token, text.c_str(), user) == 0;
    };
    const auto before_forward = [&] { use.check_cancelled(message("after ", written, written == 1 ? " token" : " tokens")); };
    const Generated made = use.generator().generate({prompt, prompt + count}, checked, tell, before_forward);
    const std::string rest = decoder ? decoder->finish() : std::string();
    if (on_token != nullptr && !rest.empty()) static_cast<void>(on_token(-1, rest.c_str(), user));
    if (tokens != nullptr) *tokens = allocated(made.tokens);
    fill(generated, {0, static_cast<int64_t>(made.tokens.size()), as_number(made.ended), made.reused, made.prefilled,
                     made.prefill_seconds, made.decode_seconds});
  });
}

mobizo_status mobizo_chat_encode(mobizo_program* program, mobizo_tokenizer* tokenizer, const mobizo_message* messages,
                                 int64_t count, int64_t** ids, int64_t* id_count) {
  return guarded([&] {
    const ProgramUse use(program);
    const auto open = tokenizer_for(use.program(), tokenizer);
    if (count < 1) fail("count must be at least 1, got ", count);
    given(messages, "messages");
    given(ids, "ids");
    given(id_count, "id_count");
    std::vector<Message> conversation;
    for (const mobizo_message* message = messages; message != messages + count; ++message)
      conversation.push_back({given(message->role, "role"), given(message->content, "content")});
    const std::vector<int64_t> found = ChatEncoder(use.program().description(), open->tokenizer()).prompt(conversation);
    *ids = allocated(found);
    *id_count = static_cast<int64_t>(found.size());
  });
}
