// SPDX-License-Identifier: Apache-2.0
// Known kinds of files by their first bytes, so that a file in the wrong place is refused by its name and with what to
// do, not read as noise.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include <zeropp/train/checkpoint/file.hpp>

namespace zeropp {

struct FileKind {
  std::string_view begin;  ///< the bytes at `offset`
  std::string_view name;
  std::string_view as_data;     ///< what to do with the file that was given as data; empty: it may be text
  std::string_view as_weights;  ///< and as weights
  std::size_t offset = 0;
};

namespace detail {

inline constexpr std::string_view unpack = "unpack it first";
inline constexpr std::string_view no_text = "give a text file, or a file of tokens";
inline constexpr std::string_view to_safetensors =
    "load it in Python and write it with safetensors.torch.save_file, or give the model.safetensors of the same model";
inline constexpr std::string_view no_weights = "give a model.safetensors, or the folder that holds it";

inline constexpr std::array<FileKind, 28> file_kinds{{
    {"version https://git-lfs.github.com/", "a Git LFS pointer in place of a file",
     "fetch the file with git lfs pull", "fetch the file with git lfs pull"},
    {"\x93NUMPY", "a NumPy array (.npy)",
     "write its tokens with numpy.load(...).astype(numpy.uint16).tofile(\"train.bin\") and give that with "
     "--data-format raw",
     to_safetensors},
    {std::string_view("PK\3\4", 4), "a zip archive (.npz, or what torch.save writes)",
     "take the arrays out of it; write tokens as uint16 and give them with --data-format raw", to_safetensors},
    {std::string_view("\x80\2\x8a\x0a", 4), "a pickle of torch.save", no_text, to_safetensors},
    {std::string_view("\x80\4\x95", 3), "a Python pickle", no_text, to_safetensors},
    {std::string_view("\x80\3}", 3), "a Python pickle", no_text, to_safetensors},
    {std::string_view("\x80\2}", 3), "a Python pickle", no_text, to_safetensors},
    {"GGUF", "a GGUF model", no_text, to_safetensors},
    {"\x89HDF", "an HDF5 file (.h5)", no_text, to_safetensors},
    {std::string_view("\xc6\xd7\x34\x01", 4), "a model file of llm.c", no_text, to_safetensors},
    {std::string_view("\xc7\xd7\x34\x01", 4), "a debug state of llm.c", no_text, no_weights},
    {std::string_view("\x88\xd8\x34\x01", 4), "a token file of llm.c", "", "give it as --data"},
    {std::string_view("\xa1\xd9\x34\x01", 4), "a token file of llm.c", "", "give it as --data"},
    {std::string_view("MMIDIDX\0\0", 9), "an index of Megatron (.idx)", "", "give it as --data"},
    {"\x89PNG", "a picture (PNG)", no_text, no_weights},
    {"\xff\xd8\xff", "a picture (JPEG)", no_text, no_weights},
    {"GIF8", "a picture (GIF)", no_text, no_weights},
    {"%PDF-", "a PDF file", "write its text with pdftotext and give that", no_weights},
    {"\x1f\x8b", "compressed by gzip", unpack, unpack},
    {"\x28\xb5\x2f\xfd", "compressed by zstd", unpack, unpack},
    {std::string_view("\xfd"
                      "7zXZ\0",
                      6),
     "compressed by xz", unpack, unpack},
    {"1AY&SY", "compressed by bzip2", unpack, unpack, 4},
    {"PAR1", "a Parquet file", "write its column of text into a file and give that", no_weights},
    {"ARROW1", "an Arrow file", "write its column of text into a file and give that", no_weights},
    {"\x7f"
     "ELF",
     "a program", no_text, no_weights},
    {std::string_view("\xff\xfe", 2), "text in UTF-16", "convert it with iconv -f UTF-16 -t UTF-8", no_weights},
    {std::string_view("\xfe\xff", 2), "text in UTF-16", "convert it with iconv -f UTF-16 -t UTF-8", no_weights},
    {"<!DOCTYPE html", "a page of HTML, perhaps in place of a download", "", "download the file again"},
}};
inline constexpr FileKind safetensors_kind{"", "a file of weights (safetensors)", "give it as --weights", ""};
inline constexpr FileKind tokenizer_kind{"", "a tokenizer (tokenizer.json)", "give it as --tokenizer", no_weights};
inline constexpr FileKind index_kind{"", "an index of weights", "give its folder as --weights", "give its folder"};
inline constexpr FileKind json_kind{"", "JSON", "", no_weights};

}  // namespace detail

/// The kind of a file that begins with these bytes (4096 are enough); null where it is none of the known ones.
inline const FileKind* kind_of_file(std::string_view first) {
  if (first.size() > 8 && first[8] == '{') {  // first of all: a length may have the bytes of another kind
    std::uint64_t header = 0;
    std::memcpy(&header, first.data(), 8);
    if (header >= 2 && header <= 100'000'000) return &detail::safetensors_kind;
  }
  for (auto& kind : detail::file_kinds)
    if (first.size() > kind.offset && first.substr(kind.offset).starts_with(kind.begin)) return &kind;
  const auto letter = first.find_first_not_of(" \t\r\n");
  if (letter == first.npos || first[letter] != '{') return nullptr;
  const auto holds = [&](std::string_view key) { return first.find(key) != first.npos; };
  if (holds("\"added_tokens\"") || (holds("\"truncation\"") && holds("\"padding\""))) return &detail::tokenizer_kind;
  return holds("\"weight_map\"") ? &detail::index_kind : &detail::json_kind;
}

/// The same of an open file.
inline const FileKind* kind_of_file(File& file) {
  std::string first(static_cast<std::size_t>(std::min<std::int64_t>(file.size(), 4096)), '\0');
  file.read_at(0, std::as_writable_bytes(std::span{first}));
  return kind_of_file(first);
}

}  // namespace zeropp
