#include "tokenizer.h"

#include "../files/file.h"
#include "parts.h"

namespace mobizo::trainer {
namespace {

// The part under `name`, made of its JSON and what else it takes; Part() if there is none.
template <typename Part, typename... Others>
Part part_of(const Json& json, const char* name, Others... others) {
  const Json* part = find_part(json, name);
  return part == nullptr ? Part() : blaming(name, [&] { return Part(*part, others...); });
}

}  // namespace

Tokenizer Tokenizer::load(const std::string& path) {
  return blaming(path, [&] { return Tokenizer(parse_json(read_file(path))); });
}

Tokenizer::Tokenizer(const Json& json)
    : model_(blaming("model", [&] { return Bpe(json["model"]); })),
      normalizer_(part_of<Normalizer>(json, "normalizer")),
      pre_tokenizer_(part_of<PreTokenizer>(json, "pre_tokenizer", normalizer_.inserts())),
      template_(part_of<Template>(json, "post_processor")),
      decoder_(part_of<Decoder>(json, "decoder")) {
  if (const Json* list = find_part(json, "added_tokens")) added_ = AddedTokens(*list, model_, normalizer_);
  size_ = static_cast<int64_t>(model_.size());
  for (const auto& [token, id] : added_.ids())
    if (!model_.id(token)) ++size_;
  blaming("post_processor", [&] { template_.check([&](int64_t id) { return this->token(id) != nullptr; }); });
}

std::vector<int64_t> Tokenizer::encode(std::string_view text, bool add_special) const {
  const size_t valid = utf8_valid_bytes(text);
  if (valid < text.size()) fail("the text is not UTF-8 at byte ", valid);
  std::vector<int64_t> ids;
  Bpe::Work work;
  std::vector<AddedTokens::Part> parts, inner;
  added_.split(text, false, parts);
  for (const AddedTokens::Part& part : parts) {
    if (part.id >= 0) {
      ids.push_back(part.id);
      continue;
    }
    std::string normalized(text.substr(part.begin, part.end - part.begin));
    bool at_start = part.begin == 0;
    normalizer_.apply(normalized, at_start);
    inner.clear();
    added_.split(normalized, true, inner);
    for (const AddedTokens::Part& piece : inner) {
      if (piece.id >= 0) {
        ids.push_back(piece.id);
      } else {
        encode_between(normalized.substr(piece.begin, piece.end - piece.begin), at_start && piece.begin == 0, work, ids);
      }
    }
  }
  return template_.apply(std::move(ids), add_special);
}

// What no added token is in.
void Tokenizer::encode_between(std::string text, bool at_start, Bpe::Work& work, std::vector<int64_t>& ids) const {
  Pieces pieces;
  pieces.pieces.push_back({0, text.size(), at_start});
  pieces.text = std::move(text);
  pre_tokenizer_.apply(pieces);
  for (const Piece& piece : pieces.pieces) model_.encode(pieces.view(piece), work, ids);
}

std::string Tokenizer::decode(const std::vector<int64_t>& ids, bool skip_special) const {
  StreamDecoder stream(*this, skip_special);
  std::string text;
  for (const int64_t id : ids) text += stream.push(id);
  return text += stream.finish();
}

int64_t Tokenizer::vocabulary_size() const { return size_; }

std::optional<int64_t> Tokenizer::id(std::string_view token) const {
  const auto added = added_.id(token);
  return added ? added : model_.id(token);
}

const std::string* Tokenizer::token(int64_t id) const {
  const std::string* added = added_.token(id);
  return added != nullptr ? added : model_.token(id);
}

const std::string* Tokenizer::token_to_decode(int64_t id, bool skip_special) const {
  const std::string* found = token(id);
  return found != nullptr && skip_special && added_.is_special(*found) ? nullptr : found;
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer), skip_special_(skip_special), text_(tokenizer.decoder_) {}

std::string StreamDecoder::push(int64_t id) {
  const std::string* token = tokenizer_->token_to_decode(id, skip_special_);
  return token == nullptr ? std::string() : text_.push(*token);
}

std::string StreamDecoder::finish() { return text_.finish(); }

}  // namespace mobizo::trainer
