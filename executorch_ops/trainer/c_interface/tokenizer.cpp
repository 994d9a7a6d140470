#include "handles.h"

using namespace mobizo::trainer::c_interface;

mobizo_status mobizo_tokenizer_encode(mobizo_tokenizer* tokenizer, const char* text, uint64_t length, int32_t add_special,
                                      int64_t** ids, int64_t* count) {
  return guarded([&] {
    const auto open = tokenizers().find(tokenizer);
    given(ids, "ids");
    given(count, "count");
    if (length > 0) given(text, "text");
    const std::vector<int64_t> found = open->tokenizer().encode({text, static_cast<size_t>(length)}, add_special != 0);
    *ids = allocated(found);
    *count = static_cast<int64_t>(found.size());
  });
}

mobizo_status mobizo_tokenizer_decode(mobizo_tokenizer* tokenizer, const int64_t* ids, int64_t count, int32_t skip_special,
                                      char** text, uint64_t* length) {
  return guarded([&] {
    const auto open = tokenizers().find(tokenizer);
    given(text, "text");
    if (count < 0) mobizo::trainer::fail("count must be at least 0, got ", count);
    if (count > 0) given(ids, "ids");
    const std::string found = open->tokenizer().decode({ids, ids + count}, skip_special != 0);
    *text = allocated(found);
    if (length != nullptr) *length = found.size();
  });
}

mobizo_status mobizo_tokenizer_size(mobizo_tokenizer* tokenizer, int64_t* tokens) {
  return guarded([&] {
    const auto open = tokenizers().find(tokenizer);
    *given(tokens, "tokens") = open->tokenizer().vocabulary_size();
  });
}

mobizo_status mobizo_tokenizer_id(mobizo_tokenizer* tokenizer, const char* token, int64_t* id) {
  return guarded([&] {
    const auto open = tokenizers().find(tokenizer);
    *given(id, "id") = open->tokenizer().id(given(token, "token")).value_or(-1);
  });
}
