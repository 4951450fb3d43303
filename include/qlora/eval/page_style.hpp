// qlora/eval/page_style.hpp — the style sheet that reports and the server's page share: light and dark, narrow screens,
// paper.
#pragma once

#include <string_view>

namespace qlora {
inline namespace v0 {
namespace eval {
namespace detail {

inline constexpr std::string_view page_style = R"(
:root{color-scheme:light dark;--ink:#1d2126;--soft:#5b6470;--paper:#fff;--line:#d8dde3;--box:#f4f6f8}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#9aa5b1;--paper:#16191d;--line:#353b43;--box:#1f242a}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:76rem;
background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;margin:.4rem 0}h2{font-size:1.2rem;margin:2rem 0 .6rem;border-bottom:1px solid var(--line)}
p.summary{color:var(--soft);margin-top:0}
.wide{overflow-x:auto}
table{border-collapse:collapse;margin:.5rem 0;font-size:.9rem}
p.caption{color:var(--soft);font-size:.9rem;margin:.8rem 0 0}
th,td{border-bottom:1px solid var(--line);padding:.3rem .7rem;text-align:right;vertical-align:top;white-space:nowrap}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper)}
.narrow td,.narrow th{white-space:normal}
.text td,.text th{text-align:left;white-space:normal;overflow-wrap:anywhere}
.plots{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,30rem),1fr))}
.sweep{margin:1rem 0 2rem}@media (max-width:40rem){.narrow{font-size:.8rem}.narrow td,.narrow th{padding:.3rem .35rem}}
.first{display:grid;gap:1rem 2rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}
.findings{margin:0}.findings dt{font-weight:600;margin-top:.6rem}.findings dd{margin:0}
details.section{border-bottom:1px solid var(--line)}details.section h2{display:inline-block;border:0;margin:.8rem 0}
details.section summary{color:var(--ink)}
figure{margin:0;overflow-x:auto}@media screen and (max-width:40rem){figure svg.plot{min-width:34rem}}
summary{cursor:pointer;color:var(--soft);font-size:.9rem}
article{border:1px solid var(--line);border-radius:.5rem;padding:.6rem .9rem;margin:.8rem 0}
article h3{margin:.1rem 0 .5rem;font-size:1rem;white-space:pre-wrap}article h3 small{color:var(--soft);font-weight:400}
.answers{display:grid;gap:.6rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr))}
.answers h4{margin:0 0 .2rem;font-size:.85rem;color:var(--soft)}
.answer{background:var(--box);border-radius:.4rem;padding:.5rem .7rem;white-space:pre-wrap;overflow-wrap:anywhere}
@media print{body{max-width:none;font-size:11px}article,figure,.sweep{break-inside:avoid}h2{break-after:avoid}
.answers{grid-template-columns:repeat(3,1fr)}
.narrow td,.narrow th{padding:.2rem .4rem}details{display:none}details.section{display:block}}
)";

}  // namespace detail
}  // namespace eval
}  // namespace v0
}  // namespace qlora
