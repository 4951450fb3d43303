// qlora/web/charset.hpp — bytes of a page to UTF-8, and what kind of bytes they are.
// Order: Content-Type, byte order mark, <meta>, valid UTF-8, windows-1252. What may not change: the output is valid
// UTF-8 without NUL whatever comes in; only the encodings listed here are ever asked of iconv.
#pragma once

#include <iconv.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "qlora/error.hpp"
#include "qlora/text/document.hpp"

namespace qlora {
inline namespace v0 {
namespace web {

inline constexpr std::string_view replacement_character = "\xEF\xBF\xBD";

namespace detail {

[[nodiscard]] constexpr bool is_space(char c) noexcept {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f';
}
[[nodiscard]] constexpr bool is_letter(char c) noexcept { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
[[nodiscard]] constexpr bool is_digit(char c) noexcept { return c >= '0' && c <= '9'; }
[[nodiscard]] constexpr char lower(char c) noexcept { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }
[[nodiscard]] inline std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = lower(c);
  return out;
}
[[nodiscard]] inline std::string_view trim(std::string_view text) noexcept {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

/// Appends a code point; surrogates and numbers past U+10FFFF become U+FFFD.
inline void append_utf8(std::string& out, std::uint32_t code) {
  const auto tail = [&](unsigned shift) { out += static_cast<char>(0x80U | (code >> shift & 0x3FU)); };
  if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) {
    out += replacement_character;
  } else if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0U | code >> 6);
    tail(0);
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0U | code >> 12);
    tail(6);
    tail(0);
  } else {
    out += static_cast<char>(0xF0U | code >> 18);
    tail(12);
    tail(6);
    tail(0);
  }
}

/// Bytes 0x80..0x9F of windows-1252 (WHATWG index: the five free bytes are C1 controls).
inline constexpr std::array<std::uint16_t, 32> windows_1252 = {
    0x20AC, 0x81,   0x201A, 0x192,  0x201E, 0x2026, 0x2020, 0x2021, 0x2C6,  0x2030, 0x160,
    0x2039, 0x152,  0x8D,   0x17D,  0x8F,   0x90,   0x2018, 0x2019, 0x201C, 0x201D, 0x2022,
    0x2013, 0x2014, 0x2DC,  0x2122, 0x161,  0x203A, 0x153,  0x9D,   0x17E,  0x178};

[[nodiscard]] inline std::string decode_windows_1252(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    append_utf8(out, byte >= 0x80 && byte < 0xA0 ? windows_1252[byte - 0x80U] : byte);
  }
  return out;
}

/// Well-formed UTF-8; every other byte becomes U+FFFD. Counts both kinds of non-ASCII sequences.
[[nodiscard]] inline std::string decode_utf8(std::string_view bytes, std::size_t& good, std::size_t& bad) {
  std::string out;
  for (std::size_t i = 0; i < bytes.size();) {
    const std::size_t n = utf8_sequence_length(bytes.substr(i));
    good += n > 1;
    bad += n == 0;
    out += n == 0 ? replacement_character : bytes.substr(i, n);
    i += n == 0 ? 1 : n;
  }
  return out;
}

/// Decodes by iconv; bytes that do not fit become U+FFFD.
[[nodiscard]] inline std::string decode_iconv(std::string_view bytes, const char* name) {
  const iconv_t converter = ::iconv_open("UTF-8", name);
  if (converter == reinterpret_cast<iconv_t>(-1))
    throw Error(concat("this system's iconv does not know ", name, "; install the C library's gconv modules"),
                ErrorKind::resource);
  std::string out;
  std::array<char, 4096> piece{};
  std::string input(bytes);  // iconv wants a mutable pointer
  char* in = input.data();
  std::size_t left = input.size();
  while (left > 0) {
    char* to = piece.data();
    std::size_t room = piece.size();
    const std::size_t result = ::iconv(converter, &in, &left, &to, &room);
    const int code = errno;
    out.append(piece.data(), piece.size() - room);
    if (result != static_cast<std::size_t>(-1) || code == E2BIG) continue;
    out += replacement_character;
    if (code != EILSEQ) break;  // EINVAL: the page ends inside a character
    ++in;
    --left;
  }
  ::iconv_close(converter);
  return out;
}

/// WHATWG label -> name for iconv ("" if unknown). ASCII and ISO-8859-1 mean windows-1252, as browsers have it.
[[nodiscard]] inline std::string encoding_of(std::string_view label) {
  const std::string name = lower(trim(label));
  static constexpr std::pair<std::string_view, std::string_view> known[] = {{"utf-8", "UTF-8"},
                                                                            {"utf8", "UTF-8"},
                                                                            {"unicode-1-1-utf-8", "UTF-8"},
                                                                            {"us-ascii", "CP1252"},
                                                                            {"ascii", "CP1252"},
                                                                            {"iso-8859-1", "CP1252"},
                                                                            {"iso8859-1", "CP1252"},
                                                                            {"latin1", "CP1252"},
                                                                            {"l1", "CP1252"},
                                                                            {"windows-1252", "CP1252"},
                                                                            {"cp1252", "CP1252"},
                                                                            {"x-cp1252", "CP1252"},
                                                                            {"iso-8859-2", "ISO-8859-2"},
                                                                            {"latin2", "ISO-8859-2"},
                                                                            {"iso-8859-3", "ISO-8859-3"},
                                                                            {"iso-8859-4", "ISO-8859-4"},
                                                                            {"iso-8859-5", "ISO-8859-5"},
                                                                            {"iso-8859-6", "ISO-8859-6"},
                                                                            {"iso-8859-7", "ISO-8859-7"},
                                                                            {"iso-8859-8", "ISO-8859-8"},
                                                                            {"iso-8859-9", "CP1254"},
                                                                            {"latin5", "CP1254"},
                                                                            {"iso-8859-10", "ISO-8859-10"},
                                                                            {"iso-8859-13", "ISO-8859-13"},
                                                                            {"iso-8859-14", "ISO-8859-14"},
                                                                            {"iso-8859-15", "ISO-8859-15"},
                                                                            {"latin9", "ISO-8859-15"},
                                                                            {"iso-8859-16", "ISO-8859-16"},
                                                                            {"windows-1250", "CP1250"},
                                                                            {"windows-1251", "CP1251"},
                                                                            {"cp1251", "CP1251"},
                                                                            {"windows-1253", "CP1253"},
                                                                            {"windows-1254", "CP1254"},
                                                                            {"windows-1255", "CP1255"},
                                                                            {"windows-1256", "CP1256"},
                                                                            {"windows-1257", "CP1257"},
                                                                            {"windows-1258", "CP1258"},
                                                                            {"windows-874", "CP874"},
                                                                            {"tis-620", "CP874"},
                                                                            {"koi8-r", "KOI8-R"},
                                                                            {"koi8-u", "KOI8-U"},
                                                                            {"ibm866", "CP866"},
                                                                            {"cp866", "CP866"},
                                                                            {"macintosh", "MACINTOSH"},
                                                                            {"shift_jis", "CP932"},
                                                                            {"shift-jis", "CP932"},
                                                                            {"sjis", "CP932"},
                                                                            {"windows-31j", "CP932"},
                                                                            {"euc-jp", "EUC-JP"},
                                                                            {"iso-2022-jp", "ISO-2022-JP"},
                                                                            {"gb2312", "GB18030"},
                                                                            {"gbk", "GB18030"},
                                                                            {"gb18030", "GB18030"},
                                                                            {"big5", "BIG5-HKSCS"},
                                                                            {"big5-hkscs", "BIG5-HKSCS"},
                                                                            {"euc-kr", "CP949"},
                                                                            {"ks_c_5601-1987", "CP949"},
                                                                            {"utf-16", "UTF-16LE"},
                                                                            {"utf-16le", "UTF-16LE"},
                                                                            {"utf-16be", "UTF-16BE"}};
  for (const auto& [key, value] : known)
    if (key == name) return std::string(value);
  return {};
}

/// Value of charset= in a Content-Type or in a <meta> tag's text.
[[nodiscard]] inline std::string charset_parameter(std::string_view text) {
  const std::string low = lower(text);
  std::size_t at = 0;
  while ((at = low.find("charset", at)) != std::string::npos) {
    at += 7;
    std::size_t i = at;
    while (i < low.size() && is_space(low[i])) ++i;
    if (i == low.size() || low[i] != '=') continue;
    ++i;
    while (i < low.size() && (is_space(low[i]) || low[i] == '"' || low[i] == '\'')) ++i;
    const std::size_t end = low.find_first_of("\"'; \t\r\n>/", i);
    return low.substr(i, end == std::string::npos ? end : end - i);
  }
  return {};
}

/// Encoding that a <meta> tag in the first 4 KiB names. UTF-16 there cannot be true (the tag was readable): UTF-8.
[[nodiscard]] inline std::string meta_encoding(std::string_view page) {
  const std::string head = lower(page.substr(0, 4096));
  for (std::size_t at = head.find("<meta"); at != std::string::npos; at = head.find("<meta", at + 5)) {
    const std::size_t end = head.find('>', at);
    const std::string name = encoding_of(charset_parameter(std::string_view(head).substr(at, end - at)));
    if (!name.empty()) return name.starts_with("UTF-16") ? "UTF-8" : name;
  }
  return {};
}

}  // namespace detail

/// A page as UTF-8, and the encoding that it was read as.
struct Decoded {
  std::string text;
  std::string encoding;
};

/// Decodes a page. A label that the bytes contradict (more broken than good UTF-8 sequences) is passed over.
[[nodiscard]] inline Decoded decode_page(std::string_view bytes, std::string_view content_type) {
  std::string mark;
  std::size_t mark_length = 0;
  if (bytes.starts_with("\xEF\xBB\xBF")) mark = "UTF-8", mark_length = 3;
  if (bytes.starts_with("\xFF\xFE")) mark = "UTF-16LE", mark_length = 2;
  if (bytes.starts_with("\xFE\xFF")) mark = "UTF-16BE", mark_length = 2;
  const std::string header = detail::encoding_of(detail::charset_parameter(content_type));
  const bool utf8 = find_invalid_utf8(bytes) == std::string_view::npos;
  const std::string meta = detail::meta_encoding(bytes);
  Decoded page;
  for (const std::string& name : {header, mark, meta, std::string(utf8 ? "UTF-8" : ""), std::string("CP1252")}) {
    if (name.empty()) continue;
    const std::string_view body = name == mark ? bytes.substr(mark_length) : bytes;
    std::size_t good = 0;
    std::size_t bad = 0;
    page.encoding = name;
    page.text = name == "CP1252"  ? detail::decode_windows_1252(body)
                : name == "UTF-8" ? detail::decode_utf8(body, good, bad)
                                  : detail::decode_iconv(body, name.c_str());
    if (bad <= good) break;
  }
  std::erase(page.text, '\0');
  return page;
}

/// Name of the binary format the bytes look like ("PDF", "PNG image", ... "binary data"), "" if they may be text.
[[nodiscard]] inline std::string binary_format(std::string_view bytes) {
  using namespace std::string_view_literals;
  static constexpr std::pair<std::string_view, std::string_view> magic[] = {
      {"%PDF-"sv, "PDF"sv},
      {"\x89PNG"sv, "PNG image"sv},
      {"GIF8"sv, "GIF image"sv},
      {"\xFF\xD8\xFF"sv, "JPEG image"sv},
      {"PK\x03\x04"sv, "ZIP archive or Office document"sv},
      {"\x1F\x8B"sv, "gzip data"sv},
      {"\x28\xB5\x2F\xFD"sv, "zstd data"sv},
      {"7z\xBC\xAF"sv, "7z archive"sv},
      {"Rar!\x1A"sv, "RAR archive"sv},
      {"BZh"sv, "bzip2 data"sv},
      {"\xFD\x37zXZ"sv, "xz data"sv},
      {"\x7F\x45LF"sv, "ELF program"sv},
      {"\0asm"sv, "WebAssembly"sv},
      {"SQLite format 3\0"sv, "SQLite database"sv},
      {"OggS"sv, "Ogg media"sv},
      {"ID3"sv, "MP3 audio"sv},
      {"wOFF"sv, "font"sv},
      {"wOF2"sv, "font"sv},
      {"\xD0\xCF\x11\xE0"sv, "old Office document"sv},
      {"II*\0"sv, "TIFF image"sv},
      {"MM\0*"sv, "TIFF image"sv}};
  for (const auto& [start, name] : magic)
    if (bytes.starts_with(start)) return std::string(name);
  if (bytes.size() >= 12 && bytes.starts_with("RIFF")) return "RIFF media (WebP, WAV or AVI)";
  if (bytes.size() >= 12 && bytes.substr(4, 4) == "ftyp") return "MP4 or HEIF media";
  if (bytes.starts_with("\xFF\xFE") || bytes.starts_with("\xFE\xFF")) return {};
  // WHATWG MIME sniffing, "binary data byte"; a few stray ones are an editor's accident, not a format.
  const std::string_view head = bytes.substr(0, 4096);
  const auto odd = std::count_if(head.begin(), head.end(), [](char c) {
    const auto b = static_cast<unsigned char>(c);
    return b < 0x20 && !detail::is_space(c) && b != 0x1B;
  });
  return static_cast<std::size_t>(odd) * 100 > head.size() ? "binary data" : "";
}

}  // namespace web
}  // namespace v0
}  // namespace qlora
