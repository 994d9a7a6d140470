#include "handles.h"

namespace mobizo::trainer::c_interface {
namespace {

void check_idle(const OpenProgram& open) {
  if (open.busy) throw Busy("program is at work: use it again when the call that it is in has returned");
}

}  // namespace

uintptr_t next_handle() {
  static std::atomic<uintptr_t> last{0};
  return last += 16;
}

// Neither is ever destroyed: at the end of the process threads of it may be at work.
Registry<mobizo_program, OpenProgram>& programs() {
  static auto* registry = new Registry<mobizo_program, OpenProgram>("program");
  return *registry;
}

Registry<mobizo_tokenizer, const TokenizerFile>& tokenizers() {
  static auto* registry = new Registry<mobizo_tokenizer, const TokenizerFile>("tokenizer");
  return *registry;
}

std::shared_ptr<const TokenizerFile> tokenizer_for(const Program& program, const mobizo_tokenizer* handle) {
  auto open = tokenizers().find(handle);
  const Description& d = program.description();
  if (d.tokenizer) open->check(d);
  if (const int64_t size = open->tokenizer().vocabulary_size(); size > d.vocabulary)
    fail("the tokenizer has ", size, " tokens, more than the ", d.vocabulary, " of the program's model");
  return open;
}

ProgramUse::ProgramUse(mobizo_program* handle)
    : open_(programs().find(handle, [](OpenProgram& open) {
        check_idle(open);
        open.cancelled = false;
        open.busy = true;
      })) {}

ProgramUse::~ProgramUse() { open_->busy = false; }

void ProgramUse::check_cancelled(const std::string& where) const {
  if (open_->cancelled) throw Cancelled("cancelled " + where);
}

}  // namespace mobizo::trainer::c_interface

using namespace mobizo::trainer::c_interface;

mobizo_status mobizo_program_open(const char* path, int64_t threads, mobizo_program** program) {
  return guarded([&] {
    *given(program, "program") = nullptr;
    *program = programs().add(std::make_shared<OpenProgram>(given(path, "path"), threads));
  });
}

mobizo_status mobizo_program_close(mobizo_program* program) {
  return guarded([&] {
    if (program != nullptr) programs().remove(program, check_idle);
  });
}

mobizo_status mobizo_cancel(mobizo_program* program) {
  return guarded([&] { programs().find(program, [](OpenProgram& open) { open.cancelled = open.busy.load(); }); });
}

mobizo_status mobizo_tokenizer_open(const char* path, mobizo_tokenizer** tokenizer) {
  return guarded([&] {
    *given(tokenizer, "tokenizer") = nullptr;
    *tokenizer = tokenizers().add(std::make_shared<const mobizo::trainer::TokenizerFile>(given(path, "path")));
  });
}

mobizo_status mobizo_tokenizer_close(mobizo_tokenizer* tokenizer) {
  return guarded([&] {
    if (tokenizer != nullptr) tokenizers().remove(tokenizer, [](const auto&) {});
  });
}
