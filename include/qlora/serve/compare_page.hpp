// qlora/serve/compare_page.hpp — the page that a server shows to a browser: one question, the answers of several
// variants of a model side by side as they come, tokens where they differ marked, and what else each token could have
// been. Plain HTML, CSS and JavaScript over the OpenAI routes of the same server; nothing is loaded from elsewhere.
#pragma once

#include <string>
#include <string_view>

#include "qlora/eval/page_style.hpp"
#include "qlora/serve/compare_script.hpp"
#include "qlora/serve/probe_script.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {

/// What the page has beside the style sheet of reports.
inline constexpr std::string_view compare_style = R"css(
body{max-width:100rem}[hidden]{display:none!important}
form,.bar{display:flex;flex-wrap:wrap;gap:.5rem .8rem;align-items:end;margin:.6rem 0}
label{display:flex;flex-direction:column;font-size:.85rem;color:var(--soft);gap:.15rem}
label.grow{flex:1 1 24rem}
textarea,input,select,button{font:inherit;color:var(--ink);background:var(--box);border:1px solid var(--line);
border-radius:.4rem;padding:.35rem .6rem}
textarea{width:100%;min-height:4.5rem;resize:vertical}
input[type=number]{width:7.5rem}input[type=range]{padding:0;width:9rem}
button{cursor:pointer}button:disabled{opacity:.5;cursor:default}
button.main{background:#0b57d0;border-color:#0b57d0;color:#fff}
:focus-visible{outline:3px solid #4c8bf5;outline-offset:1px}
#columns{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr))}
.column{border:1px solid var(--line);border-radius:.5rem;padding:.6rem .8rem;min-width:0}
.column h2{font-size:1rem;border:0;margin:0 0 .3rem}
.turn{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--box);border-radius:.4rem;padding:.5rem .7rem;
margin:.4rem 0}
.turn.user{background:none;border:1px solid var(--line)}
.turn .who{display:block;font-size:.75rem;color:var(--soft)}
.token.other{background:rgba(255,170,0,.32);border-radius:.15rem}
.token.parts{box-shadow:inset 0 -2px #d06a00}
.token.kl{background-image:linear-gradient(#3c78ff,#3c78ff);background-repeat:no-repeat;background-position:0 100%;
background-size:100% calc(var(--kl) * .45em)}
.legend{font-size:.8rem;color:var(--soft);margin:.5rem 0}
.legend .token{padding:0 .3rem}
.foot{font-size:.8rem;color:var(--soft);min-height:1.2rem}
.error{color:#b3261e;font-weight:600}@media (prefers-color-scheme:dark){.error{color:#ff8a80}}
#tip{position:fixed;z-index:2;background:var(--paper);border:1px solid var(--line);border-radius:.4rem;
padding:.3rem .5rem;box-shadow:0 2px 10px rgba(0,0,0,.3);font-size:.85rem;max-width:20rem;pointer-events:none}
#tip table{margin:0}#tip td,#tip th{padding:.1rem .5rem;background:none}
#parted{margin:.6rem 0;min-height:1.5rem}
details.settings summary{font-size:1rem}
#probe_table{overflow-x:auto;max-height:32rem;overflow-y:auto;position:relative}
#probe_table table{border-collapse:collapse;width:100%;margin:0}
#probe_table thead th{position:sticky;top:0;background:var(--paper);z-index:1}
#probe_table td,#probe_table th{text-align:left;vertical-align:top;white-space:normal;padding:.25rem .4rem;
min-width:4rem;max-width:22rem;overflow-wrap:break-word}
#probe_table td:first-child{min-width:7rem}
.right::before{content:"\2713\a0";color:#177a3c;font-weight:700}
.wrong::before{content:"\2717\a0";color:#b3261e;font-weight:700}
@media (prefers-color-scheme:dark){.right::before{color:#6fd08c}.wrong::before{color:#ff8a80}}
button.link{background:none;border:0;padding:0;text-align:left;color:inherit;text-decoration:underline dotted}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
)css";

/// The body of the page.
inline constexpr std::string_view compare_body = R"html(
<main>
<h1>Compare</h1>
<p class="summary">One question to several variants of a model. Tokens that differ from the first answer are marked;
point at a token, or move with the arrow keys, to see what else it could have been.</p>
<form id="unlock" hidden>
<label>Key of this server<input id="key" type="password" required autocomplete="off"></label>
<button class="main">Use it</button>
</form>
<form id="ask">
<label class="grow">Question
<textarea id="question" required maxlength="200000"></textarea></label>
<button class="main" id="send">Ask (Ctrl+Enter)</button>
<button type="button" id="stop" disabled>Stop</button>
<button type="button" id="reset">New conversation</button>
<button type="button" id="add">Add a variant</button>
</form>
<details class="settings"><summary>Settings</summary>
<div class="bar">
<label>New tokens, at most<input id="max_tokens" type="number" min="1" max="100000" value="200"></label>
<label>Temperature<input id="temperature" type="number" min="0" max="2" step="any" value="0.01"></label>
<label>Top p<input id="top_p" type="number" min="0.01" max="1" step="any" value="0.9"></label>
<label>Seed<input id="seed" type="number" min="0" max="4294967295" step="1" value="0"></label>
<label>Form<select id="form"><option value="chat">conversation</option>
<option value="completion">completion</option></select></label>
</div></details>
<p id="problem" class="error" role="alert"></p>
<p id="parted" role="status"></p>
<div id="columns"></div>
<p class="legend" id="legend" hidden><span class="token other">Other token</span> than in the first answer.
<span class="token kl" style="--kl:.7">Bar</span>: how far the distribution at this token is from that of the first
variant behind the same words, in KL divergence; highest at 3 nats.</p>
<details id="probes" hidden><summary>Probes: questions with known answers</summary>
<p class="foot">The variants above are asked greedily, as a study asks them; a question goes into the box above when it
is chosen.</p>
<div class="bar">
<label>Kind<select id="probe_kind"></select></label>
<button type="button" id="probe_all">Ask all of this kind</button>
</div>
<div id="probe_sums" role="status"></div>
<div id="probe_table" tabindex="0" role="region" aria-label="Probes and verdicts"></div>
</details>
</main>
<div id="tip" hidden></div>
)html";

/// The whole page, HTML5 in UTF-8.
[[nodiscard]] inline std::string compare_page() {
  std::string page =
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>Compare</title><style>";
  page += eval::detail::page_style;
  page += compare_style;
  page += "</style></head><body>";
  page += compare_body;
  page += "<script>";
  page += compare_script;
  page += probe_script;
  page += "load();\n";
  page += "</script></body></html>\n";
  return page;
}

/// What the browser is told about the page: it loads nothing, from nowhere, and shows nobody's frame.
inline constexpr std::string_view compare_policy =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'";

}  // namespace serve
}  // namespace v0
}  // namespace qlora
