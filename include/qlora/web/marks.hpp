// qlora/web/marks.hpp — what an element's name, role, class and id say about its text.
// Sources: the HTML standard's sectioning elements, WAI-ARIA landmark roles, schema.org's articleBody, and words that
// site builders use in class names, in several languages.
#pragma once

#include <gumbo.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "qlora/web/charset.hpp"
#include "qlora/web/prescan.hpp"

namespace qlora {
inline namespace v0 {
namespace web {
namespace detail {

/// Why a block may be boilerplate, and where it stands.
enum Place : unsigned {
  in_chrome = 1U << 0,   ///< nav, header, footer, aside, or such a role
  in_form = 1U << 1,     ///< form
  in_suspect = 1U << 2,  ///< an element whose class or id suggests menus, cookies, sharing ...
  in_main = 1U << 3,     ///< main, or role=main
  in_article = 1U << 4,  ///< article
  in_hidden = 1U << 5,   ///< never text: hidden, noscript, template ...
  in_link = 1U << 6,
  in_pre = 1U << 7,
  in_caption = 1U << 8,   ///< of a picture
  in_byline = 1U << 9,    ///< who, when, tags
  in_body = 1U << 10,     ///< an element that says that it holds the article's body
  in_comment = 1U << 12,  ///< what readers wrote
};

[[nodiscard]] inline bool is_hidden_style(std::string_view style) {
  std::string squeezed = lower(style.substr(0, 4096));
  std::erase_if(squeezed, is_space);
  return squeezed.find("display:none") != std::string::npos || squeezed.find("visibility:hidden") != std::string::npos;
}

/// Whether a style keeps line breaks and indents. "pre-wrap" does, too, but editors put it on any paragraph.
[[nodiscard]] inline bool is_pre_style(std::string_view style) {
  std::string squeezed = lower(style.substr(0, 4096)) + ";";
  std::erase_if(squeezed, is_space);
  return squeezed.find("white-space:pre;") != std::string::npos;
}

template <class Use>
void for_each_attribute(const GumboVector& attributes, const Use& use) {
  for (unsigned i = 0; i < attributes.length; ++i) {
    const auto* attribute = static_cast<const GumboAttribute*>(attributes.data[i]);
    use(std::string_view(attribute->name), std::string_view(attribute->value));
  }
}

inline constexpr std::array<std::string_view, 9> chrome_roles = {
    "navigation", "banner", "contentinfo", "complementary", "search", "menu", "menubar", "toolbar", "tablist"};
/// Words of class and id names, split at anything but letters and at capitals.
inline constexpr std::string_view suspect_words =
    " cookie cookies consent gdpr ccpa privacy newsletter subscribe subscription breadcrumb breadcrumbs share sharing "
    "shares sharedaddy social sidebar menu navbar nav navi navigation footer related recommended recommendation "
    "recommendations recirc advert adverts ads advertisement advertising ad promo promos promotion popup modal overlay "
    "lightbox banner skip pagination pager sponsored sponsor toolbar masthead teaser teasers widget widgets outbrain "
    "taboola trending popular mostread signup login signin register registration paywall printonly copyright legal "
    "disclaimer hatnote navbox infobox toc catlinks addthis sociable likes rating ratings votes poll "
    "readmore donate donation carousel ticker topbar bottombar author authors authorbox bio autor auteur autore "
    // German, French, Spanish, Portuguese, Italian, Dutch, Polish, Nordic, Turkish, Indonesian, Czech
    "werbung anzeige anzeigen teilen verwandt fusszeile partage partager publicite publicidad publicidade pubblicita "
    "compartir compartilhar condividi relacionadas relacionados relacionado correlati delen gerelateerd udostepnij "
    "powiazane reklama reklam reklame annons iklan bagikan paylas boletin sdilet ";
inline constexpr std::string_view comment_words =
    " comment comments commentlist commenters disqus respond replies commentary-list kommentare kommentar commentaires "
    "comentarios commenti reacties komentarze komentarz kommentarer yorumlar komentar komentare livefyre ";
inline constexpr std::string_view byline_words =
    " byline bylines dateline postmeta timestamp tag tags taglist pubdate datetime credit credits meta metadata "
    "published ";
inline constexpr std::string_view caption_words =
    " caption captions figcaption imagecaption photocaption photocredit bildunterschrift legende ";
/// "has-sidebar", "no-ads": the name describes the element's surroundings.
inline constexpr std::array<std::string_view, 8> negating_words = {"has",     "with", "no",   "not",
                                                                   "without", "hide", "show", "is"};
/// Names of the element that holds the article's body, compared without hyphens and underscores.
inline constexpr std::array<std::string_view, 34> body_names = {
    "articlebody",        "articlecontent", "articletext",   "articlebodytext",   "articlebodycontent",
    "articlemaincontent", "entrycontent",   "postcontent",   "postbody",          "posttext",
    "storybody",          "storycontent",   "storytext",     "storybodytext",     "bodycontent",
    "bodytext",           "bodycopy",       "blogcontent",   "blogpost",          "newscontent",
    "newstext",           "newsbody",       "contentbody",   "contentarticle",    "articlecopy",
    "articleblock",       "fulltext",       "textoarticulo", "detailtext",        "artikeltext",
    "articlecontainer",   "singlecontent",  "pagecontent",   "articlebodywrapper"};

/// Whole names, compared in the same way: who wrote a post of a forum, and how it was liked.
inline constexpr std::array<std::string_view, 16> side_names = {
    "userinfo",    "userdetails", "useractiontime", "postprofile",  "messageuser",      "messagecelluser",
    "postersinfo", "votecell",    "votecount",      "jsvotecount",  "messagesignature", "postsignature",
    "signature",   "onlinelist",  "reflist",        "referencelist"};
/// Whole names of what is said about a picture.
inline constexpr std::array<std::string_view, 6> caption_names = {"thumbcaption", "imgdescr",  "imgdesc",
                                                                  "picdesc",      "photodesc", "gallerytext"};

/// Bits of Place that each of the words stands for.
[[nodiscard]] inline const std::unordered_map<std::string_view, unsigned>& word_places() {
  static const std::unordered_map<std::string_view, unsigned> places = [] {
    std::unordered_map<std::string_view, unsigned> made;
    for (auto [words, place] : {std::pair{suspect_words, in_suspect},
                                {comment_words, in_comment},
                                {byline_words, in_byline},
                                {caption_words, in_caption}}) {
      while (!words.empty()) {
        const std::size_t end = words.find(' ');
        if (end > 0) made[words.substr(0, end)] |= place;
        words.remove_prefix(end + 1);
      }
    }
    return made;
  }();
  return places;
}

/// What class and id names say.
[[nodiscard]] inline unsigned place_of_names(std::string_view names) {
  unsigned place = 0;
  bool embedded = false;  // a post of another site, shown inside of the text
  bool entry = false;     // a whole post of a blog, whose names list its tags
  std::string word;
  std::string before;  // the word before it in the same name
  std::string name;    // whole, letters alone
  const auto end_word = [&] {
    if (word.empty()) return;
    if (word.size() >= 2 && word.size() <= 20 && !one_of(before, negating_words)) {
      const auto known = word_places().find(word);
      if (known != word_places().end()) place |= known->second;
    }
    embedded = embedded || word == "embed" || word == "embedded" || word == "tweet";
    before = std::move(word);
    word.clear();
  };
  for (std::size_t i = 0; i <= names.size(); ++i) {
    const char c = i < names.size() ? names[i] : ' ';
    if (!is_letter(c)) end_word();
    if (is_space(c)) {
      if (one_of(name, body_names)) place |= in_body;
      if (one_of(name, side_names)) place |= in_suspect;
      if (one_of(name, caption_names)) place |= in_caption;
      if (name == "mweditsection") place |= in_hidden;  // in the middle of a heading
      entry = entry || name == "hentry" || name == "typepost";
      name.clear();
      before.clear();
    } else if (is_letter(c)) {
      if (c >= 'A' && c <= 'Z' && i > 0 && names[i - 1] >= 'a' && names[i - 1] <= 'z') end_word();
      word += lower(c);
      if (name.size() < 64) name += lower(c);
    }
  }
  if (embedded) place &= ~unsigned{in_suspect};
  return entry ? (place & in_body) | in_article : place;
}

inline constexpr std::array<std::string_view, 22> skipped_elements = {
    "script", "style",    "noscript", "template", "iframe", "object", "svg", "canvas",
    "select", "textarea", "option",   "applet",   "audio",  "video",  "map", "dialog",
    "head",   "title",    "datalist", "noframes", "button", "noembed"};

/// Elements that hold text which opens later; others of such a name are its icons and labels.
inline constexpr std::array<std::string_view, 8> panel_elements = {"div", "section", "article", "dd",
                                                                   "p",   "ul",      "ol",      "li"};

/// Whether the names of an element say that it opens at a click, as the parts of an accordion do.
[[nodiscard]] inline bool is_opened_later(std::string_view names) {
  const std::string low = lower(names.substr(0, 4096));
  for (const char* word : {"accordion", "faq", "question", "answer", "collaps", "expand", "disclosure"})
    if (low.find(word) != std::string::npos) return true;
  return false;
}

/// What a button or a link opens and closes.
struct Disclosure {
  bool toggles = false;   ///< it opens something, which is no menu
  std::string_view what;  ///< ids of that, separated by spaces; may be empty
};

/// Reads the attributes of the disclosure pattern (WAI-ARIA) and of Bootstrap's collapse.
[[nodiscard]] inline Disclosure disclosure_of(const GumboVector& attributes) {
  Disclosure found;
  bool expands = false;
  bool has_menu = false;
  for_each_attribute(attributes, [&](std::string_view key, std::string_view value) {
    expands = expands || key == "aria-expanded" ||
              ((key == "data-toggle" || key == "data-bs-toggle") && lower(value) == "collapse");
    has_menu = has_menu || key == "aria-haspopup";
    if (key == "aria-controls") found.what = value;
    if (key == "href" && value.starts_with('#') && found.what.empty()) found.what = value.substr(1);
  });
  found.toggles = expands && !has_menu;
  return found;
}

/// The element of a table whose part a neutral element plays by its role; empty: none.
[[nodiscard]] inline std::string_view table_part_of(std::string_view name, const GumboVector& attributes) {
  if (name != "div" && name != "span") return {};
  std::string_view part;
  for_each_attribute(attributes, [&](std::string_view key, std::string_view value) {
    if (key != "role") return;
    if (value == "table" || value == "grid") part = "table";
    if (value == "row") part = "tr";
    if (value == "cell" || value == "gridcell" || value == "rowheader") part = "td";
    if (value == "columnheader") part = "th";
  });
  return part;
}

/// Whether an element holds digits alone, or, where that is allowed, nothing.
[[nodiscard]] inline bool has_only_digits(const GumboNode& node, bool or_nothing) {
  std::vector<const GumboNode*> open{&node};
  bool digits = false;
  for (std::size_t seen = 0; !open.empty(); ++seen) {
    const GumboNode& next = *open.back();
    open.pop_back();
    if (seen == 100'000) return false;
    if (next.type == GUMBO_NODE_ELEMENT) {
      const GumboVector& children = next.v.element.children;
      for (unsigned i = 0; i < children.length; ++i) open.push_back(static_cast<const GumboNode*>(children.data[i]));
    } else if (next.type != GUMBO_NODE_COMMENT) {
      const std::string_view text = next.v.text.text;
      if (text.find_first_not_of("0123456789 \t\r\n\f") != std::string_view::npos) return false;
      digits = digits || text.find_first_of("0123456789") != std::string_view::npos;
    }
  }
  return digits || or_nothing;
}

/// Whether an element of that name is the number of a line of code.
[[nodiscard]] inline bool is_line_number(std::string_view name, const GumboNode& node) {
  if (name != "td" && name != "span" && name != "a") return false;
  bool named = false;
  bool gutter = false;  // or a column that keeps two others apart
  for_each_attribute(node.v.element.attributes, [&](std::string_view key, std::string_view value) {
    if (key != "class") return;
    std::string low = lower(value.substr(0, 4096));
    std::erase_if(low, [](char c) { return c == '-' || c == '_'; });
    gutter = name == "td" && low == "gutter";
    for (const char* word : {"lineno", "linenumber", "blobnum", "lnnum"})
      named = named || low.find(word) != std::string::npos;
  });
  return (named || gutter) && has_only_digits(node, named);
}

/// An id made of a heading's words ("sharing-with-a-single-developer") describes the text's subject.
[[nodiscard]] inline bool is_slug(std::string_view id) {
  return std::count_if(id.begin(), id.end(), [](char c) { return c == '-' || c == '_'; }) >= 3;
}

/// Bits of Place that an element adds; `outside` are those around it. `opened_later`: a button opens it.
[[nodiscard]] inline unsigned own_place(std::string_view name, const GumboVector& attributes, unsigned outside,
                                        bool opened_later) {
  unsigned place = 0;
  const bool inside = (outside & (in_main | in_article)) != 0;  // an article's own header and footer hold its text
  if (one_of(name, skipped_elements)) place |= in_hidden;
  if (name == "nav" || name == "aside" || ((name == "header" || name == "footer") && !inside)) place |= in_chrome;
  if (name == "form") place |= in_form;
  if (name == "main") place |= in_main;
  if (name == "article") place |= in_article;
  if (name == "a" && !disclosure_of(attributes).toggles) place |= in_link;
  if (name == "pre" || name == "listing" || name == "xmp") place |= in_pre;
  if (name == "figcaption") place |= in_caption;
  const bool named = name != "html" && name != "body";
  bool hidden = false;
  for_each_attribute(attributes, [&](std::string_view key, std::string_view value) {
    if ((key == "hidden" && lower(value) != "until-found") || (key == "aria-hidden" && value == "true") ||
        (key == "style" && is_hidden_style(value)))
      hidden = true;
    if (key == "style" && is_pre_style(value)) place |= in_pre;
    if (key == "class" || key == "id") opened_later = opened_later || is_opened_later(value);
    if (key == "role") opened_later = opened_later || value == "region" || value == "tabpanel";
    if (key == "shadowrootmode") place &= ~unsigned{in_hidden};  // browsers show this template's content
    if (key == "role" && value == "main") place |= in_main;
    if (key == "role" && (value == "dialog" || value == "alertdialog")) place |= in_suspect;
    if (key == "role" && one_of(value, chrome_roles)) place |= in_chrome;
    if (key == "itemprop" && lower(value) == "articlebody") place |= in_body;
    if (key == "class" && named) place |= place_of_names(value.substr(0, 4096));
    if (key == "id" && named && !is_slug(value)) place |= place_of_names(value.substr(0, 4096));
  });
  if (hidden && !(opened_later && one_of(name, panel_elements))) place |= in_hidden;
  const bool heading = name.size() == 2 && name[0] == 'h' && is_digit(name[1]);
  if (name == "main" || name == "article" || heading) place &= ~unsigned{in_suspect | in_comment | in_byline};
  return place;
}

/// A button that is the heading of what it opens.
[[nodiscard]] inline bool is_heading_button(std::string_view name, const GumboVector& attributes, bool in_heading) {
  if (name != "button") return false;
  const Disclosure disclosure = disclosure_of(attributes);
  bool opens = in_heading || (disclosure.toggles && !disclosure.what.empty());
  for_each_attribute(attributes, [&](std::string_view key, std::string_view value) {
    if (key == "class" || key == "id") opens = opens || is_opened_later(value);
  });
  return opens;
}

}  // namespace detail
}  // namespace web
}  // namespace v0
}  // namespace qlora
