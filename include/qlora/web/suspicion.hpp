// qlora/web/suspicion.hpp — pages that arrived whole and are no article: forwards, checks for robots, data, logins,
// programs that draw themselves, missing pages. Only pages with little text are judged by their words.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "qlora/web/blocks.hpp"
#include "qlora/web/charset.hpp"

namespace qlora {
inline namespace v0 {
namespace web {
namespace detail {

[[nodiscard]] inline bool has_any(std::string_view text, std::initializer_list<std::string_view> phrases) {
  for (const std::string_view phrase : phrases)
    if (text.find(phrase) != std::string_view::npos) return true;
  return false;
}

/// Whether the page asks for JavaScript where a browser without it looks.
[[nodiscard]] inline bool needs_script(std::string_view html) {
  const std::string page = lower(html.substr(0, std::size_t{1} << 20));
  for (std::size_t at = page.find("<noscript"); at != std::string::npos; at = page.find("<noscript", at + 9)) {
    const std::string_view inside =
        std::string_view(page).substr(at, std::min<std::size_t>(page.find("</noscript", at) - at, 2000));
    if (has_any(inside, {"javascript", "java script"})) return true;
  }
  return false;
}

/// Why the page is no article, or "" if it may be one. `text` is what extract() takes from it ("" if nothing), `prose`
/// how many bytes of it are running text: a page with more has its login beside an article, however short.
[[nodiscard]] inline std::string why_no_article(const BlockBuilder& page, std::string_view text, std::size_t prose,
                                                std::string_view html) {
  const std::string_view body = trim(html);
  if ((body.starts_with('{') || body.starts_with('[')) && nlohmann::json::accept(body.begin(), body.end()))
    return "it is JSON, not a page";
  if (body.starts_with("<?xml") && has_any(body.substr(0, 1000), {"<rss", "<feed", "<urlset", "<sitemapindex"}))
    return "it is a feed or a sitemap";
  if (text.size() < 600 && lower(page.refresh).find("url") != std::string::npos)
    return "it only forwards to another address";
  if (text.size() > 1500) return {};
  if (text.size() < 400 && lower(body.substr(0, std::size_t{1} << 16)).find("<frameset") != std::string::npos)
    return "it is a set of frames, whose pages have their own addresses";
  const std::string words = lower(page.title) + "\n" + lower(text);
  const std::string title = lower(page.title);
  if (has_any(title, {"just a moment", "attention required", "access denied", "are you a robot", "robot check",
                      "ddos-guard", "security check", "403 forbidden", "pardon our interruption"}) ||
      has_any(words,
              {"checking your browser", "checking if the site connection is secure", "verify you are human",
               "verify that you are human", "verifying you are human", "enable javascript and cookies to continue",
               "unusual traffic from your", "are not a robot", "request has been blocked", "complete the captcha"}))
    return "it is a check for robots, or the access was denied";
  if (page.asks_password && text.size() < 800 && prose < 200) return "it asks for a login";
  if (text.size() < 400 && has_any(words, {"enable javascript", "javascript is disabled", "requires javascript",
                                           "javascript is required", "javascript aktivieren", "activer javascript",
                                           "activar javascript", "habilite javascript", "turn on javascript"}))
    return "its text needs JavaScript";
  if (text.size() < 200 && needs_script(html)) return "its text needs JavaScript";
  if (text.size() < 800 && has_any(title, {"404", "page not found", "not found", "seite nicht gefunden",
                                           "page introuvable", "p\xC3\xA1gina no encontrada"}))
    return "it says that it does not exist";
  return {};
}

}  // namespace detail
}  // namespace web
}  // namespace v0
}  // namespace qlora
