// qlora/web/fetch.hpp — pages from http, https and file: addresses and from local files, as UTF-8 with provenance.
// What may not change: one bad page is one bad result.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/utc_time.hpp"
#include "qlora/net/http.hpp"
#include "qlora/net/shown.hpp"
#include "qlora/web/charset.hpp"

namespace qlora {
inline namespace v0 {
namespace web {

/// What a fetch may cost and reach; `max_bytes` holds for local files too.
using FetchOptions = net::HttpOptions;

/// A page that arrived.
struct Page {
  std::string source;           ///< as asked for, without credentials
  std::string url;              ///< after redirects
  std::string content_type;     ///< without parameters, lower case; from the name or the bytes where no server said it
  std::string charset;          ///< that the bytes were read as
  std::string unknown_charset;  ///< what the page calls its encoding, where nobody knows it
  std::string body;             ///< UTF-8
  std::string fetched_at;       ///< ISO 8601, UTC
};

/// What became of one address: a page, or why not.
struct FetchResult {
  std::string source;                   ///< the address as it was given
  std::optional<Page> page;             ///< empty: see error
  std::string error;                    ///< one line; empty where there is a page
  ErrorKind kind = ErrorKind::network;  ///< of the error
};

namespace detail {

[[nodiscard]] inline bool has_scheme(std::string_view source, std::string_view scheme) {
  return source.size() > scheme.size() && lower(source.substr(0, scheme.size())) == scheme;
}

/// Media type of text that we can use, judged by what was declared, else by the bytes; throws for all others.
[[nodiscard]] inline std::string text_type(const std::string& declared, std::string_view bytes,
                                           const std::string& source) {
  const auto refuse = [&](const std::string& what) {
    throw Error(concat(source, ": not a text page but ", what, "; only HTML, plain text and Markdown are read"));
  };
  if (const std::string binary = binary_format(bytes); !binary.empty()) refuse(binary);
  const std::string type = lower(trim(std::string_view(declared).substr(0, declared.find(';'))));
  if (type == "text/html" || type == "application/xhtml+xml" || type == "text/plain" || type == "text/markdown")
    return type;
  const bool xml = type == "application/xml" || type == "text/xml";
  if (xml && lower(bytes.substr(0, 1024)).find("<html") != std::string::npos) return "application/xhtml+xml";
  if (!type.empty() && type != "application/octet-stream" && type != "unknown/unknown") refuse(type);
  const std::string head = lower(bytes.substr(0, 1024));
  for (const char* mark : {"<!doctype html", "<html", "<head", "<body", "<title", "<h1", "<p>", "<div"})
    if (head.find(mark) != std::string::npos) return "text/html";
  return "text/plain";
}

[[nodiscard]] inline Page finish_page(const std::string& source, std::string url, const std::string& declared,
                                      std::string_view bytes) {
  if (trim(bytes).empty()) throw Error(source + ": the page is empty");
  Page page{.source = source,
            .url = std::move(url),
            .content_type = text_type(declared, bytes, source),
            .charset = {},
            .unknown_charset = {},
            .body = {},
            .fetched_at = utc_now()};
  Decoded decoded = decode_page(bytes, declared);
  page.charset = std::move(decoded.encoding);
  page.unknown_charset = std::move(decoded.unknown_label);
  page.body = std::move(decoded.text);
  return page;
}

/// Whether an error is no fault of the page that met it: a request to stop, a disk that fails.
[[nodiscard]] inline bool ends_batch(const Error& error) {
  const bool of_system = error.kind() == ErrorKind::resource && dynamic_cast<const SystemError*>(&error) != nullptr;
  return of_system || error.kind() == ErrorKind::interrupted;
}

[[nodiscard]] inline Page read_local(const std::string& source, const std::filesystem::path& path,
                                     const FetchOptions& options) {
  std::error_code code;
  if (!std::filesystem::is_regular_file(path, code))
    throw Error(concat(source, ": no such file, or not a plain one (a web address begins with http:// or https://)"));
  const auto size = std::filesystem::file_size(path, code);
  if (code || size > options.max_bytes) throw Error(concat(source, ": larger than ", options.max_bytes, " bytes"));
  const std::string bytes = read_text(path, options.max_bytes);
  refuse_lfs_pointer(bytes, source);
  const std::string extension = lower(path.extension().string());
  const std::string type = extension == ".html" || extension == ".htm" || extension == ".xhtml" ? "text/html"
                           : extension == ".md" || extension == ".markdown"                     ? "text/markdown"
                           : extension == ".txt" || extension == ".text"                        ? "text/plain"
                                                                                                : "";
  return finish_page(source, source, type, bytes);
}

/// Local path of a file: address (no host or localhost), percent-decoded.
[[nodiscard]] inline std::filesystem::path file_url_path(const std::string& source) {
  std::string_view rest = std::string_view(source).substr(5);
  if (rest.starts_with("//")) {
    rest.remove_prefix(2);
    const std::string_view host = rest.substr(0, rest.find('/'));
    if (!host.empty() && lower(host) != "localhost")
      throw Error(source + ": a file: address cannot name another host", ErrorKind::usage);
    rest.remove_prefix(host.size());
  }
  const auto hex = [](char c) {
    return is_digit(c) ? c - '0' : lower(c) >= 'a' && lower(c) <= 'f' ? lower(c) - 'a' + 10 : -1;
  };
  std::string path;
  for (std::size_t i = 0; i < rest.size(); ++i) {
    if (rest[i] == '%' && i + 2 < rest.size() && hex(rest[i + 1]) >= 0 && hex(rest[i + 2]) >= 0) {
      path += static_cast<char>(hex(rest[i + 1]) * 16 + hex(rest[i + 2]));
      i += 2;
    } else {
      path += rest[i];
    }
  }
  if (path.empty() || path.find('\0') != std::string::npos)
    throw Error(source + ": not a usable file: address", ErrorKind::usage);
  return path;
}

}  // namespace detail

/// Fetches one page: an http:, https: or file: address or a local path. Throws Error: network (no answer, refused, over
/// a cap), input (not text, empty, no such file), usage (an address that cannot be meant), interrupted.
[[nodiscard]] inline Page fetch_page(const std::string& source, const FetchOptions& options = {}) {
  if (source.find_first_of(std::string_view("\0\r\n", 3)) != std::string::npos)
    throw Error("an address holds a line break or NUL", ErrorKind::usage);
  if (detail::has_scheme(source, "http://") || detail::has_scheme(source, "https://")) {
    const net::HttpResponse response = net::http_get(source, options);
    return detail::finish_page(net::shown_address(source), response.url, response.content_type, response.body);
  }
  if (detail::has_scheme(source, "file:")) return detail::read_local(source, detail::file_url_path(source), options);
  if (source.find("://") != std::string::npos)
    throw Error(net::shown_address(source) + ": unknown kind of address; use http://, https://, file: or a path",
                ErrorKind::usage);
  return detail::read_local(source, source, options);
}

/// Fetches many, one after the other in the order given; a page that fails is a result with an error, and the rest go
/// on. Only a request to stop ends the batch (throws, ErrorKind::interrupted).
[[nodiscard]] inline std::vector<FetchResult> fetch_pages(
    std::span<const std::string> sources, const FetchOptions& options = {},
    const std::function<void(const FetchResult&)>& on_result = {}) {
  std::vector<FetchResult> results;
  for (const std::string& source : sources) {
    FetchResult result{
        .source = net::shown_address(source), .page = std::nullopt, .error = {}, .kind = ErrorKind::network};
    try {
      result.page = fetch_page(source, options);
    } catch (const Error& e) {
      if (detail::ends_batch(e)) throw;
      result.error = e.what();
      result.kind = e.kind();
    }
    results.push_back(std::move(result));
    if (on_result) on_result(results.back());
  }
  return results;
}

}  // namespace web
}  // namespace v0
}  // namespace qlora
