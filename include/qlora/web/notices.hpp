// qlora/web/notices.hpp — lines that sites put between the paragraphs of any article: labels of advertisements, "read
// also", calls to subscribe or to share, cookie notices. Short blocks alone are judged, by whole lines or beginnings in
// the languages that most pages are written in.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

#include "qlora/web/charset.hpp"
#include "qlora/web/table.hpp"

namespace qlora {
inline namespace v0 {
namespace web {
namespace detail {

/// Whole lines, in lower case (ASCII letters alone are lowered), without marks at the end.
inline constexpr std::string_view notice_lines =
    "\nad\nads\nadvert\nadvertisement\nadvertisements\nadvertising\nsponsored\nsponsored "
    "links\npromoted\ncaption\nclose\n"
    "share\nshare this\nshare this article\nshare this post\nshare this story\ntweet\nprint\nemail\ncomments\ncomment\n"
    "leave a comment\nleave a reply\nadd a comment\npost a comment\nrelated\nrelated articles\nrelated news\nrelated "
    "posts\n"
    "related stories\nrelated topics\nrelated tags\nrelated content\nread more\nread also\nsee also\nmore\nmore "
    "stories\n"
    "more news\nyou may also like\nyou might also like\nrecommended\nrecommended for you\nlatest news\nmost read\n"
    "most popular\ntrending\ntopics\ntags\nsubscribe\nsubscribe now\nsign up\nsign in\nlog in\nlog out\nregister\n"
    "newsletter\nfollow us\nadvertisement - continue reading below\nstory continues below advertisement\nloading\n"
    "this slideshow requires javascript\nskip to content\nback to top\nprevious\nnext\nprevious article\nnext article\n"
    "enlarge\nview gallery\ngallery\nwatch\nlisten\nsupport us\ndonate\n"
    "anzeige\nwerbung\nteilen\nkommentare\nkommentar schreiben\nkommentare schreiben\nkommentieren\nmehr zum thema\n"
    "auch interessant\nweiterlesen\nlesen sie auch\nweitere artikel\nweitere informationen\nverwandte artikel\nmehr "
    "themen\n"
    "bild anzeigen\nexterner inhalt\ndrucken\nzur startseite\nimpressum\ndas k\xC3\xB6nnte sie auch interessieren\n"
    "publicit\xC3\xA9\npartager\ncommentaires\nlire aussi\n\xC3\xA0 lire aussi\nvoir aussi\nsur le m\xC3\xAAme sujet\n"
    "articles li\xC3\xA9s\ns'abonner\n"
    "publicidad\ncompartir\ncomentarios\nleer m\xC3\xA1s\nlea tambi\xC3\xA9n\nlee tambi\xC3\xA9n\nver tambi\xC3\xA9n\n"
    "noticias relacionadas\nte puede interesar\nsuscr\xC3\xAD"
    "bete\n"
    "publicidade\ncompartilhar\ncoment\xC3\xA1rios\nleia mais\nleia tamb\xC3\xA9m\nveja tamb\xC3\xA9m\n"
    "pubblicit\xC3\xA0\ncondividi\ncommenti\nleggi anche\nleggi tutto\npotrebbe interessarti\n"
    "advertentie\ndelen\nreacties\nlees ook\nlees meer\n"
    "reklama\nudost\xC4\x99pnij\nkomentarze\nczytaj te\xC5\xBC\nczytaj tak\xC5\xBC"
    "e\nczytaj wi\xC4\x99"
    "cej\nzobacz te\xC5\xBC\n"
    "annons\nreklame\nl\xC3\xA4s ocks\xC3\xA5\nles ogs\xC3\xA5\n\xC4\x8Dt\xC4\x9Bte tak\xC3\xA9\nsouvisej\xC3\xAD"
    "c\xC3\xAD\n"
    "reklam\npayla\xC5\x9F\nyorumlar\niklan\nbagikan\nkomentar\nbaca juga\n"
    // Russian: advertisement, read also, comments, share
    "\xD0\xA0\xD0\xB5\xD0\xBA\xD0\xBB\xD0\xB0\xD0\xBC\xD0\xB0\n"
    "\xD0\xA7\xD0\xB8\xD1\x82\xD0\xB0\xD0\xB9\xD1\x82\xD0\xB5 \xD1\x82\xD0\xB0\xD0\xBA\xD0\xB6\xD0\xB5\n"
    "\xD0\x9A\xD0\xBE\xD0\xBC\xD0\xBC\xD0\xB5\xD0\xBD\xD1\x82\xD0\xB0\xD1\x80\xD0\xB8\xD0\xB8\n"
    "\xD0\x9F\xD0\xBE\xD0\xB4\xD0\xB5\xD0\xBB\xD0\xB8\xD1\x82\xD1\x8C\xD1\x81\xD1\x8F\n"
    // Japanese and Chinese: advertisement, sponsored link, related articles, share, comments
    "\xE5\xBA\x83\xE5\x91\x8A\n\xE3\x82\xB9\xE3\x83\x9D\xE3\x83\xB3\xE3\x82\xB5\xE3\x83\xBC\xE3\x83\x89"
    "\xE3\x83\xAA\xE3\x83\xB3\xE3\x82\xAF\n\xE9\x96\xA2\xE9\x80\xA3\xE8\xA8\x98\xE4\xBA\x8B\n"
    "\xE3\x82\xB7\xE3\x82\xA7\xE3\x82\xA2\n\xE5\xB9\xBF\xE5\x91\x8A\n\xE5\x88\x86\xE4\xBA\xAB\n"
    "\xE7\x9B\xB8\xE5\x85\xB3\xE9\x98\x85\xE8\xAF\xBB\n\xE7\x9B\xB8\xE5\x85\xB3\xE6\x96\x87\xE7\xAB\xA0\n"
    "\xE8\xAF\x84\xE8\xAE\xBA\n";

/// Beginnings of lines of up to 160 bytes, in lower case.
inline constexpr std::string_view notice_beginnings[] = {
    "read more:",
    "read also:",
    "also read:",
    "read next:",
    "see also:",
    "related:",
    "more:",
    "share this ",
    "share on ",
    "follow us on ",
    "sign up for ",
    "sign up to ",
    "subscribe to ",
    "get the latest ",
    "click here to ",
    "click here for ",
    "posted by ",
    "posted in ",
    "posted on ",
    "filed under",
    "tagged with",
    "photo:",
    "photo by ",
    "photograph:",
    "image:",
    "image credit",
    "(image:",
    "(photo",
    "(credit",
    "still have questions",
    "copyright \xC2\xA9",
    "copyright \xE2\x93\x92",
    "copyright (c)",
    "copyright 19",
    "copyright 20",
    "lesen sie auch",
    "lesen sie hier",
    "mehr zum thema",
    "foto:",
    "fotos:",
    "bild:",
    "lire aussi",
    "\xC3\xA0 lire aussi",
    "lire la suite",
    "lea tambi\xC3\xA9n",
    "lee tambi\xC3\xA9n",
    "leia tamb\xC3\xA9m",
    "leia mais",
    "leggi anche",
    "lees ook",
    "czytaj te\xC5\xBC",
    "czytaj tak\xC5\xBC"
    "e",
    "zobacz te\xC5\xBC",
    "baca juga",
    "\xD0\xA7\xD0\xB8\xD1\x82\xD0\xB0\xD0\xB9\xD1\x82\xD0\xB5 \xD1\x82\xD0\xB0\xD0\xBA\xD0\xB6\xD0\xB5",
    // Russian: related materials, subscribe to, found a misprint or a mistake, photo; Ukrainian: read also
    "\xD0\x9C\xD0\xB0\xD1\x82\xD0\xB5\xD1\x80\xD0\xB8\xD0\xB0\xD0\xBB\xD1\x8B \xD0\xBF\xD0\xBE "
    "\xD1\x82\xD0\xB5\xD0\xBC\xD0\xB5",
    "\xD0\xA1\xD0\xBC\xD0\xBE\xD1\x82\xD1\x80\xD0\xB8\xD1\x82\xD0\xB5 \xD1\x82\xD0\xB0\xD0\xBA\xD0\xB6\xD0\xB5",
    "\xD0\x9F\xD0\xBE\xD0\xB4\xD0\xBF\xD0\xB8\xD1\x88\xD0\xB8\xD1\x82\xD0\xB5\xD1\x81\xD1\x8C \xD0\xBD\xD0\xB0 ",
    "\xD0\x9F\xD0\xBE\xD0\xB4\xD0\xBF\xD0\xB8\xD1\x81\xD1\x8B\xD0\xB2\xD0\xB0\xD0\xB9\xD1\x82\xD0\xB5\xD1\x81\xD1\x8C "
    "\xD0\xBD\xD0\xB0 ",
    "\xD0\x9D\xD0\xB0\xD1\x88\xD0\xBB\xD0\xB8 \xD0\xBE\xD0\xBF\xD0\xB5\xD1\x87\xD0\xB0\xD1\x82\xD0\xBA\xD1\x83",
    "\xD0\x9D\xD0\xB0\xD1\x88\xD0\xBB\xD0\xB8 \xD0\xBE\xD1\x88\xD0\xB8\xD0\xB1\xD0\xBA\xD1\x83",
    "\xD0\xA4\xD0\xBE\xD1\x82\xD0\xBE:",
    "\xD0\xA7\xD0\xB8\xD1\x82\xD0\xB0\xD0\xB9\xD1\x82\xD0\xB5 \xD1\x82\xD0\xB0\xD0\xBA\xD0\xBE\xD0\xB6",
    // Chinese: editor in charge, source, original title, further reading, related news
    "\xE8\xB4\xA3\xE4\xBB\xBB\xE7\xBC\x96\xE8\xBE\x91",
    "\xEF\xBC\x88\xE8\xB4\xA3\xE4\xBB\xBB\xE7\xBC\x96\xE8\xBE\x91",
    "(\xE8\xB4\xA3\xE4\xBB\xBB\xE7\xBC\x96\xE8\xBE\x91",
    "\xE8\xB4\xA3\xE7\xBC\x96",
    "\xE8\xB2\xAC\xE4\xBB\xBB\xE7\xB7\xA8\xE8\xBC\xAF",
    "\xE6\x9D\xA5\xE6\xBA\x90\xEF\xBC\x9A",
    "\xE6\x9D\xA5\xE6\xBA\x90:",
    "\xE5\x8E\x9F\xE6\xA0\x87\xE9\xA2\x98",
    "\xE5\xBB\xB6\xE4\xBC\xB8\xE9\x98\x85\xE8\xAF\xBB",
    "\xE5\xBB\xB6\xE4\xBC\xB8\xE9\x96\xB1\xE8\xAE\x80",
    "\xE7\x9B\xB8\xE5\x85\xB3\xE6\x96\xB0\xE9\x97\xBB",
    "\xE7\x9B\xB8\xE9\x97\x9C\xE6\x96\xB0\xE8\x81\x9E",
    // Japanese: related article, read together; Korean: related article, no reproduction
    "\xE9\x96\xA2\xE9\x80\xA3\xE8\xA8\x98\xE4\xBA\x8B",
    "\xE3\x81\x82\xE3\x82\x8F\xE3\x81\x9B\xE3\x81\xA6\xE8\xAA\xAD\xE3\x81\xBF\xE3\x81\x9F\xE3\x81\x84",
    "\xEA\xB4\x80\xEB\xA0\xA8\xEA\xB8\xB0\xEC\x82\xAC",
    "\xEB\xAC\xB4\xEB\x8B\xA8\xEC\xA0\x84\xEC\x9E\xAC",
    // Arabic: read also, read more, watch also; Persian: read more; Hebrew: read also
    "\xD8\xA7\xD9\x82\xD8\xB1\xD8\xA3 \xD8\xA3\xD9\x8A\xD8\xB6",
    "\xD8\xA5\xD9\x82\xD8\xB1\xD8\xA3 \xD8\xA3\xD9\x8A\xD8\xB6",
    "\xD8\xA7\xD9\x82\xD8\xB1\xD8\xA3 \xD8\xA7\xD9\x84\xD9\x85\xD8\xB2\xD9\x8A\xD8\xAF",
    "\xD8\xB4\xD8\xA7\xD9\x87\xD8\xAF \xD8\xA3\xD9\x8A\xD8\xB6",
    "\xD8\xA8\xDB\x8C\xD8\xB4\xD8\xAA\xD8\xB1 \xD8\xA8\xD8\xAE\xD9\x88\xD8\xA7\xD9\x86\xDB\x8C\xD8\xAF",
    "\xD7\xA7\xD7\xA8\xD7\x90\xD7\x95 \xD7\x92\xD7\x9D",
    // Hindi: read this too; Greek: read also; Vietnamese: see more, read more
    "\xE0\xA4\xAF\xE0\xA4\xB9 \xE0\xA4\xAD\xE0\xA5\x80 \xE0\xA4\xAA\xE0\xA4\xA2\xE0\xA4\xBC\xE0\xA5\x87\xE0\xA4\x82",
    "\xCE\x94\xCE\xB9\xCE\xB1\xCE\xB2\xCE\xAC\xCF\x83\xCF\x84\xCE\xB5 \xCE\xB5\xCF\x80\xCE\xAF\xCF\x83\xCE\xB7\xCF\x82",
    "\xCE\x94\xCE\xB9\xCE\xB1\xCE\xB2\xCE\xAC\xCF\x83\xCF\x84\xCE\xB5 \xCE\xB1\xCE\xBA\xCF\x8C\xCE\xBC",
    "xem th\xC3\xAAm",
    "\xC4\x90\xE1\xBB\x8D"
    "c th\xC3\xAAm",
};

[[nodiscard]] inline bool is_cookie_notice(const Block& block) {
  if (block.text.size() > 600) return false;
  const std::string text = lower(block.text);
  if (text.find("cookie") == std::string::npos) return false;
  for (const char* phrase : {"use cookies",
                             "uses cookies",
                             "accept",
                             "cookie settings",
                             "cookie preferences",
                             "cookie policy",
                             "consent",
                             "verwenden cookies",
                             "verwendet cookies",
                             "nutzen cookies",
                             "nutzt cookies",
                             "akzeptieren",
                             "utilise des cookies",
                             "utilisons des cookies",
                             "accepte",
                             "utiliza cookies",
                             "utilizamos cookies",
                             "aceptar",
                             "aceitar",
                             "usa cookie",
                             "utilizza cookie",
                             "utilizziamo",
                             "accetta",
                             "gebruikt cookies",
                             "gebruiken cookies",
                             "accepteren",
                             "u\xC5\xBCywa plik\xC3\xB3w",
                             "akceptuj",
                             "cookie-einstellungen",
                             "anv\xC3\xA4nder cookies"})
    if (text.find(phrase) != std::string::npos) return true;
  return false;
}

/// Whether a short block is such a line.
[[nodiscard]] inline bool is_notice(const Block& block) {
  if (block.text.size() > 160 || block.kind == BlockKind::row || block.kind == BlockKind::item ||
      (block.place & in_pre) != 0)
    return false;
  std::string line = lower(std::string_view(block.text).substr(block.mark));
  // Whose rights they are, of the page or of a picture: (c) in a circle, in either of its two forms.
  if (line.starts_with("\xC2\xA9") || line.starts_with("\xE2\x93\x92")) return true;
  if (block.text.size() <= 60) {
    std::string whole = line;
    while (!whole.empty() && std::string_view(" :.!\xC2\xBB\xA0>|-").find(whole.back()) != std::string_view::npos)
      whole.pop_back();
    if (whole.size() > 1 && notice_lines.find("\n" + whole + "\n") != std::string_view::npos) return true;
  }
  return std::any_of(std::begin(notice_beginnings), std::end(notice_beginnings),
                     [&](std::string_view beginning) { return line.starts_with(beginning); });
}

}  // namespace detail
}  // namespace web
}  // namespace v0
}  // namespace qlora
