// qlora/web/charset.hpp — bytes of a page to UTF-8, and what kind of bytes they are.
// Source: the WHATWG Encoding Standard (labels) and HTML, "determining the character encoding" (order). What may not
// change: the output is valid UTF-8 without NUL whatever comes in; only the encodings listed here are asked of iconv.
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
#include <vector>

#include "qlora/error.hpp"
#include "qlora/text/utf8.hpp"
#include "qlora/web/ascii.hpp"
#include "qlora/web/head_scan.hpp"

namespace qlora {
inline namespace v0 {
namespace web {

/// U+FFFD in UTF-8, which stands for bytes that are no character.
inline constexpr std::string_view replacement_character = "\xEF\xBF\xBD";

namespace detail {

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

/// Whether bytes are unlikely text in windows-1252: most of those beyond ASCII stand in rows, as Cyrillic letters and
/// those of Asia do, or are signs inside of words, as letters of Central Europe would read.
[[nodiscard]] inline bool contradicts_windows_1252(std::string_view bytes) {
  const auto is_mark = [](unsigned char c) {  // that texts in windows-1252 may repeat: space, ellipsis, quotes, dashes
    return c == 0xA0 || c == 0x85 || (c >= 0x91 && c <= 0x97);
  };
  const auto is_sign = [&](unsigned char c) {  // no letter, and nothing that joins two: hyphen, middle dot, accent
    constexpr std::string_view other = "\x83\x8A\x8C\x8E\x9A\x9C\x9E\x9F\xAA\xAD\xB4\xB5\xB7\xBA";
    return c >= 0x80 && c < 0xC0 && !is_mark(c) && other.find(static_cast<char>(c)) == std::string_view::npos;
  };
  const auto stands_before_words = [](unsigned char c) {  // or behind: quotes, prices, units
    constexpr std::string_view known = "\x80\x99\xA1\xA3\xA7\xA9\xAB\xAE\xB0\xB2\xB3\xB9\xBB\xBF";
    return known.find(static_cast<char>(c)) != std::string_view::npos;
  };
  std::size_t high = 0;
  std::size_t odd = 0;
  for (std::size_t i = 0; i < bytes.size();) {
    std::size_t end = i;
    std::size_t signs = 0;
    std::size_t edge_signs = 0;
    bool varies = false;
    for (; end < bytes.size(); ++end) {
      const auto c = static_cast<unsigned char>(bytes[end]);
      if (c < 0x80 || is_mark(c)) break;
      varies = varies || bytes[end] != bytes[i];
      signs += is_sign(c);
      edge_signs += is_sign(c) && !stands_before_words(c);
    }
    const bool behind_letter = i > 0 && is_letter(bytes[i - 1]);
    const bool before_letter = end < bytes.size() && is_letter(bytes[end]);
    high += end - i;
    if (end - i >= 3 && varies)
      odd += end - i;
    else if (behind_letter || before_letter)
      odd += behind_letter && before_letter ? signs : edge_signs;
    i = std::max(end, i + 1);
  }
  return odd >= 6 && odd * 2 > high;
}

/// Well-formed UTF-8; every other byte becomes U+FFFD. Counts both kinds of non-ASCII sequences.
[[nodiscard]] inline std::string decode_utf8(std::string_view bytes, std::size_t& good, std::size_t& bad) {
  std::string out;
  for (std::size_t i = 0; i < bytes.size();) {
    const std::size_t n = utf8_length(bytes.substr(i));
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

// clang-format off
/// The names that iconv has for the encodings of the WHATWG Encoding Standard, each before that standard's labels.
inline constexpr std::string_view encoding_table =
    "UTF-8 unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8 \n"
    "CP866 866 cp866 csibm866 ibm866 \n"
    "ISO-8859-2 csisolatin2 iso-8859-2 iso-ir-101 iso8859-2 iso88592 iso_8859-2 iso_8859-2:1987 l2 latin2 \n"
    "ISO-8859-3 csisolatin3 iso-8859-3 iso-ir-109 iso8859-3 iso88593 iso_8859-3 iso_8859-3:1988 l3 latin3 \n"
    "ISO-8859-4 csisolatin4 iso-8859-4 iso-ir-110 iso8859-4 iso88594 iso_8859-4 iso_8859-4:1988 l4 latin4 \n"
    "ISO-8859-5 csisolatincyrillic cyrillic iso-8859-5 iso-ir-144 iso8859-5 iso88595 iso_8859-5 iso_8859-5:1988 \n"
    "ISO-8859-6 arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6 iso-8859-6-e "
    "iso-8859-6-i iso-ir-127 iso8859-6 iso88596 iso_8859-6 iso_8859-6:1987 \n"
    "ISO-8859-7 csisolatingreek ecma-118 elot_928 greek greek8 iso-8859-7 iso-ir-126 iso8859-7 iso88597 "
    "iso_8859-7 iso_8859-7:1987 sun_eu_greek \n"
    "ISO-8859-8 csiso88598e csiso88598i csisolatinhebrew hebrew iso-8859-8 iso-8859-8-e iso-8859-8-i iso-ir-138 "
    "iso8859-8 iso88598 iso_8859-8 iso_8859-8:1988 logical visual \n"
    "ISO-8859-10 csisolatin6 iso-8859-10 iso-ir-157 iso8859-10 iso885910 l6 latin6 \n"
    "ISO-8859-13 iso-8859-13 iso8859-13 iso885913 \n"
    "ISO-8859-14 iso-8859-14 iso8859-14 iso885914 \n"
    "ISO-8859-15 csisolatin9 iso-8859-15 iso8859-15 iso885915 iso_8859-15 l9 \n"
    "ISO-8859-16 iso-8859-16 \n"
    "KOI8-R cskoi8r koi koi8 koi8-r koi8_r \n"
    "KOI8-U koi8-ru koi8-u \n"
    "MACINTOSH csmacintosh mac macintosh x-mac-roman \n"
    "CP874 dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874 \n"
    "CP1250 cp1250 windows-1250 x-cp1250 \n"
    "CP1251 cp1251 windows-1251 x-cp1251 \n"
    "CP1252 ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1 iso88591 "
    "iso_8859-1 iso_8859-1:1987 l1 latin1 us-ascii windows-1252 x-cp1252 x-user-defined \n"
    "CP1253 cp1253 windows-1253 x-cp1253 \n"
    "CP1254 cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 iso_8859-9:1989 l5 latin5 "
    "windows-1254 x-cp1254 \n"
    "CP1255 cp1255 windows-1255 x-cp1255 \n"
    "CP1256 cp1256 windows-1256 x-cp1256 \n"
    "CP1257 cp1257 windows-1257 x-cp1257 \n"
    "CP1258 cp1258 windows-1258 x-cp1258 \n"
    "MAC-UK x-mac-cyrillic x-mac-ukrainian \n"
    "GB18030 chinese csgb2312 csiso58gb231280 gb18030 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 x-gbk \n"
    "BIG5-HKSCS big5 big5-hkscs cn-big5 csbig5 x-x-big5 \n"
    "EUC-JP-MS cseucpkdfmtjapanese euc-jp x-euc-jp \n"
    "ISO-2022-JP csiso2022jp iso-2022-jp \n"
    "CP932 csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis \n"
    "CP949 cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601 "
    "windows-949 \n"
    "UTF-16BE unicodefffe utf-16be \n"
    "UTF-16LE csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff utf-16 utf-16le \n";
// clang-format on

/// WHATWG label -> name for iconv ("" if unknown). ASCII and ISO-8859-1 mean windows-1252, as in browsers; the
/// encodings that browsers refuse to read are unknown.
[[nodiscard]] inline std::string encoding_of(std::string_view label) {
  const std::string name = lower(trim(label));
  if (name.empty() || name.find_first_of(" \n") != std::string::npos) return {};
  const std::string word = " " + name + " ";
  const std::size_t at = encoding_table.find(word);
  if (at == std::string_view::npos) return {};
  const std::size_t line = encoding_table.rfind('\n', at) + 1;  // npos + 1 is 0
  return std::string(encoding_table.substr(line, encoding_table.find(' ', line) - line));
}

/// Encodings of pages in a language that say nothing of theirs (Encoding Standard and HTML, "determining the character
/// encoding"), the stricter first.
[[nodiscard]] inline std::vector<std::string> usual_encodings(std::string_view language) {
  static constexpr std::pair<std::string_view, std::string_view> usual[] = {{"ja", "ISO-2022-JP EUC-JP-MS CP932"},
                                                                            {"zh-tw", "BIG5-HKSCS"},
                                                                            {"zh-hk", "BIG5-HKSCS"},
                                                                            {"zh", "GB18030"},
                                                                            {"ko", "CP949"},
                                                                            {"ru", "CP1251"},
                                                                            {"uk", "CP1251"},
                                                                            {"bg", "CP1251"},
                                                                            {"sr", "CP1251"},
                                                                            {"be", "CP1251"},
                                                                            {"mk", "CP1251"},
                                                                            {"pl", "ISO-8859-2"},
                                                                            {"cs", "CP1250"},
                                                                            {"sk", "CP1250"},
                                                                            {"hu", "ISO-8859-2"},
                                                                            {"sl", "CP1250"},
                                                                            {"hr", "CP1250"},
                                                                            {"ro", "CP1250"},
                                                                            {"el", "CP1253"},
                                                                            {"tr", "CP1254"},
                                                                            {"he", "CP1255"},
                                                                            {"ar", "CP1256"},
                                                                            {"fa", "CP1256"},
                                                                            {"lt", "CP1257"},
                                                                            {"lv", "CP1257"},
                                                                            {"et", "CP1257"},
                                                                            {"vi", "CP1258"},
                                                                            {"th", "CP874"}};
  std::vector<std::string> names;
  for (const auto& [key, value] : usual) {
    if (!language.starts_with(key) || (language.size() > key.size() && is_letter(language[key.size()]))) continue;
    for (std::size_t at = 0; at < value.size();) {
      const std::size_t end = std::min(value.find(' ', at), value.size());
      names.emplace_back(value.substr(at, end - at));
      at = end + 1;
    }
    break;
  }
  return names;
}

[[nodiscard]] inline std::string decode_as(const std::string& name, std::string_view bytes, std::size_t& good,
                                           std::size_t& bad) {
  if (name == "CP1252") return decode_windows_1252(bytes);
  return name == "UTF-8" ? decode_utf8(bytes, good, bad) : decode_iconv(bytes, name.c_str());
}

}  // namespace detail

/// A page as UTF-8, and the encoding that it was read as.
struct Decoded {
  std::string text;           ///< UTF-8
  std::string encoding;       ///< name of the WHATWG standard
  std::string unknown_label;  ///< what header or page call their encoding, where nobody knows it
};

/// Decodes a page. What names the encoding, in this order: a byte order mark, the Content-Type, a meta element, an
/// XML declaration; without any of them UTF-16 if the first tag is in it, UTF-8 if the bytes are that, all but a few,
/// then what pages in the page's language use, then windows-1252. A label that the bytes contradict is passed over:
/// UTF-8 with more broken than good sequences, UTF-16 without a zero byte, any other over 64 bytes beyond ASCII that
/// are valid UTF-8 (no text of another encoding is that by chance; two are enough against a Content-Type of
/// windows-1252, which servers add to any page), and that Content-Type over a text that is unlikely to be in it.
[[nodiscard]] inline Decoded decode_page(std::string_view bytes, std::string_view content_type) {
  Decoded page;
  std::size_t good = 0;
  std::size_t bad = 0;
  const auto take = [&](const std::string& name, std::string_view body) {
    good = bad = 0;
    page.text = detail::decode_as(name, body, good, bad);
    page.encoding = name;
    std::erase(page.text, '\0');
    return bad <= good;
  };
  using namespace std::string_view_literals;
  for (const auto& [mark, name] :
       {std::pair{"\xEF\xBB\xBF"sv, "UTF-8"}, {"\xFF\xFE"sv, "UTF-16LE"}, {"\xFE\xFF"sv, "UTF-16BE"}})
    if (bytes.starts_with(mark) && take(name, bytes.substr(mark.size()))) return page;
  if (const std::string name = detail::unmarked_utf16(bytes); !name.empty() && take(name, bytes)) return page;
  const bool all_utf8 = find_invalid_utf8(bytes) == std::string_view::npos;
  const auto beyond_ascii =
      std::count_if(bytes.begin(), bytes.end(), [](char c) { return static_cast<unsigned char>(c) >= 0x80; });
  const detail::HeadLabels head =
      detail::HeadScan(bytes).run([](const std::string& label) { return !detail::encoding_of(label).empty(); });
  const std::string header = detail::charset_parameter(content_type);
  const std::array<std::string, 3> labels = {header, head.meta, detail::xml_label(bytes)};
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const std::string& label = labels[i];
    const bool from_header = i == 0;
    const bool from_meta = i == 1;
    if (label.empty()) continue;
    std::string name = detail::encoding_of(label);
    if (name.empty()) {
      if (page.unknown_label.empty()) page.unknown_label = label.substr(0, 64);
      continue;
    }
    if (name.starts_with("UTF-16")) {
      // A <meta> that can be read as ASCII is in UTF-8 (HTML, "prescan a byte stream").
      if (from_meta)
        name = "UTF-8";
      else if (bytes.substr(0, 4096).find('\0') == std::string_view::npos)
        continue;
    }
    if (name == "CP1252" && from_header && !all_utf8 && detail::contradicts_windows_1252(bytes)) continue;
    if (name != "UTF-8" && all_utf8 && beyond_ascii >= (name == "CP1252" && from_header ? 2 : 64)) continue;
    if (take(name, bytes)) return page;
  }
  // A page that was cut, or into which a few bytes were pasted, is UTF-8 still.
  if (take("UTF-8", bytes) && (all_utf8 || (good >= 8 && bad * 16 <= good))) return page;
  for (const std::string& name : detail::usual_encodings(head.language))
    if (take(name, bytes) && page.text.find(replacement_character) == std::string::npos) return page;
  (void)take("CP1252", bytes);
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
  if (bytes.starts_with("\xFF\xFE") || bytes.starts_with("\xFE\xFF") || !detail::unmarked_utf16(bytes).empty())
    return {};
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
