// Text for people, in places of fixed size: UTF-8, cut between characters, never within
// one.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>

#include "platform.hpp"

namespace skate {

// The first characters of `text` that fit into `limit` bytes. Text that is not UTF-8
// may be cut anywhere.
inline std::string_view cut_text(std::string_view text, std::size_t limit) {
  if (text.size() <= limit) return text;
  const auto continues = [&](std::size_t at) {
    return (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80;
  };
  std::size_t end = limit;
  while (end > 0 && limit - end < 3 && continues(end)) --end;
  return text.substr(0, continues(end) ? limit : end);
}

namespace detail {

// How many bytes of the character that `text` begins with; 0: none that a field can
// hold.
inline std::size_t character_size(std::string_view text) {
  const auto byte = [&](std::size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U;
  };
  const unsigned first = byte(0);
  if (first == 0) return 0;  // it would end the field
  if (first < 0x80) return 1;
  const std::size_t size = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4) return 0;
  for (std::size_t i = 1; i < size; ++i)
    if ((byte(i) & 0xc0) != 0x80) return 0;
  const unsigned second = byte(1);
  if (first == 0xe0 && second < 0xa0) return 0;   // longer than it need be
  if (first == 0xed && second >= 0xa0) return 0;  // half of a surrogate pair
  if (first == 0xf0 && second < 0x90) return 0;
  if (first == 0xf4 && second >= 0x90) return 0;  // beyond the last character
  return size;
}

}  // namespace detail

// `text` with a replacement character for each byte that is none of UTF-8's: Python's
// names may hold halves of surrogate pairs.
inline std::string valid_text(std::string_view text) {
  std::string valid;
  valid.reserve(text.size());
  while (!text.empty()) {
    const std::size_t size = detail::character_size(text);
    if (size == 0)
      valid += "\xef\xbf\xbd";
    else
      valid += text.substr(0, size);
    text.remove_prefix(std::max<std::size_t>(size, 1));
  }
  return valid;
}

// The one way by which text comes into a field of shared memory: as much as fits,
// valid, and ended by a zero.
template <std::size_t N>
void copy_text(char (&to)[N], std::string_view text) {
  // Cut first: nobody waits for megabytes to be looked at.
  const std::string valid = valid_text(cut_text(text, N - 1));
  const std::string_view kept = cut_text(valid, N - 1);
  std::memcpy(to, kept.data(), kept.size());
  to[kept.size()] = '\0';
}

// And out of it. What another process is just writing, or was killed in the middle of,
// may have no end and break off within a character.
template <std::size_t N>
std::string_view text_in(const char (&from)[N]) {
  return {from, strnlen(from, N)};
}

// Looks std::string keys up by views.
struct TextHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const noexcept {
    return std::hash<std::string_view>{}(text);
  }
};

}  // namespace skate
