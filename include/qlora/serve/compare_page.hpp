// qlora/serve/compare_page.hpp — the page that a server shows to a browser: one question, the answers of several
// variants of a model side by side as they come, tokens where they differ marked, and what else each token could have
// been. Plain HTML, CSS and JavaScript over the OpenAI routes of the same server; nothing is loaded from elsewhere.
#pragma once

#include <string>
#include <string_view>

#include "qlora/eval/page_style.hpp"

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
.foot{font-size:.8rem;color:var(--soft);min-height:1.2rem}
.error{color:#b3261e;font-weight:600}@media (prefers-color-scheme:dark){.error{color:#ff8a80}}
#tip{position:fixed;z-index:2;background:var(--paper);border:1px solid var(--line);border-radius:.4rem;
padding:.3rem .5rem;box-shadow:0 2px 10px rgba(0,0,0,.3);font-size:.85rem;max-width:20rem;pointer-events:none}
#tip table{margin:0}#tip td,#tip th{padding:.1rem .5rem;background:none}
#parted{margin:.6rem 0;min-height:1.5rem}
details.settings summary{font-size:1rem}
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
</main>
<div id="tip" hidden></div>
)html";

/// What the page does.
inline constexpr std::string_view compare_script = R"js(
"use strict";
const $ = (id) => document.getElementById(id);
const make = (tag, cls, text) => {
  const e = document.createElement(tag);
  if (cls) e.className = cls;
  if (text !== undefined) e.textContent = text;  // never as markup
  return e;
};
const columns = [];
let models = [];
let abort = null;

const headers = () => {
  const h = {"Content-Type": "application/json"};
  if ($("key").value) h["Authorization"] = "Bearer " + $("key").value;
  return h;
};
const problem = (text) => { $("problem").textContent = text || ""; };
async function failure(response) {
  let message = response.status + " " + response.statusText;
  try {
    const body = await response.json();
    message = (body.error && (body.error.message || body.error)) || message;
  } catch (e) { /* no JSON: the status says it */ }
  if (response.status === 401) {
    message = $("key").value ? "This is not the key of this server." : "This server needs a key.";
    $("unlock").hidden = false;
    $("key").focus();
  }
  if (response.status === 429) {
    const wait = response.headers.get("Retry-After");
    message += wait ? " Ask again in " + wait + " s." : " Ask again later.";
  }
  return message;
}

class Column {
  constructor(model) {
    this.turns = [];   // what the model sees
    this.tokens = [];  // of the newest answer: {text, logprob, top}
    this.element = make("section", "column");
    const n = Column.count = (Column.count || 0) + 1;
    const head = make("div", "bar");
    const label = make("label", "", "Variant");
    this.select = make("select");
    this.select.id = "variant" + n;
    label.append(this.select);
    this.scaleLabel = make("label", "", "Strength");
    this.scale = make("input");
    this.scale.type = "range";
    this.scale.min = "0"; this.scale.max = "2"; this.scale.step = "0.05"; this.scale.value = "1";
    this.scale.id = "scale" + n;
    this.scaleText = make("output", "", "1");
    this.scale.addEventListener("input", () => { this.scaleText.textContent = this.scale.value; this.title(); });
    this.scaleLabel.append(this.scale, this.scaleText);
    this.remove = make("button", "", "Remove");
    this.remove.type = "button";
    this.remove.addEventListener("click", () => {
      columns.splice(columns.indexOf(this), 1);
      this.element.remove();
      mark();
    });
    head.append(label, this.scaleLabel, this.remove);
    this.heading = make("h2");
    this.log = make("div");
    this.log.setAttribute("role", "log");
    this.log.setAttribute("aria-live", "off");
    this.foot = make("div", "foot");
    this.foot.setAttribute("role", "status");
    this.element.append(head, this.heading, this.log, this.foot);
    this.select.addEventListener("change", () => this.title());
    this.fill(model);
    $("columns").append(this.element);
  }
  fill(model) {
    this.select.replaceChildren(...models.map((m) => {
      const o = make("option", "", m.id);
      o.value = m.id;
      return o;
    }));
    if (model) this.select.value = model;
    this.title();
  }
  get base() {
    const m = models.find((x) => x.id === this.select.value);
    return !m || !m.parent;
  }
  get model() {
    const id = this.select.value;
    return this.base || Number(this.scale.value) === 1 ? id : id + "@" + this.scale.value;
  }
  title() {
    this.scaleLabel.hidden = this.base;
    this.heading.textContent = this.model;
    this.element.setAttribute("aria-label", "Answers of " + this.model);
    this.log.setAttribute("aria-label", "Conversation with " + this.model);
  }
  turn(role, text) {
    const t = make("div", "turn " + role);
    t.append(make("span", "who", role === "user" ? "Question" : this.model));
    const body = make("span", "body", text);
    t.append(body);
    this.log.append(t);
    return body;
  }
  reset() {
    this.turns = [];
    this.tokens = [];
    this.log.replaceChildren();
    this.foot.textContent = "";
  }
  async ask(question, signal) {
    const chat = $("form").value === "chat";
    this.turn("user", question);
    this.body = this.turn("assistant", "");
    this.tokens = this.body.tokens = [];
    this.foot.className = "foot";
    this.foot.textContent = "waiting";
    const messages = this.turns.concat([{role: "user", content: question}]);
    const request = {
      model: this.model, stream: true, stream_options: {include_usage: true},
      max_tokens: Number($("max_tokens").value), temperature: Number($("temperature").value),
      top_p: Number($("top_p").value), seed: Number($("seed").value)};
    if (chat) Object.assign(request, {messages, logprobs: true, top_logprobs: 5});
    else Object.assign(request, {prompt: question, logprobs: 5});
    const started = performance.now();
    let text = "", why = "", usage = null;
    try {
      const response = await fetch(chat ? "v1/chat/completions" : "v1/completions",
                                   {method: "POST", headers: headers(), body: JSON.stringify(request), signal});
      if (!response.ok) throw new Error(await failure(response));
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "", over = false;
      while (!over) {
        const {value, done} = await reader.read();
        if (done) break;
        rest += value;
        for (let end = rest.indexOf("\n\n"); end >= 0; end = rest.indexOf("\n\n")) {
          const event = rest.slice(0, end).split("\n").filter((l) => l.startsWith("data:"))
            .map((l) => l.slice(5).trimStart()).join("\n");
          rest = rest.slice(end + 2);
          if (event === "[DONE]") { over = true; break; }
          if (!event) continue;
          const data = JSON.parse(event);
          if (data.error) throw new Error(data.error.message || String(data.error));
          if (data.usage) usage = data.usage;
          const choice = data.choices && data.choices[0];
          if (!choice) continue;
          const piece = chat ? (choice.delta && choice.delta.content) || "" : choice.text || "";
          text += piece;
          this.take(piece, choice.logprobs, chat);
          if (choice.finish_reason) why = choice.finish_reason;
          this.foot.textContent = "answering";
          schedule();
        }
      }
      if (!over) throw new Error("the connection ended before the answer did");
      const seconds = (performance.now() - started) / 1000;
      const count = usage ? usage.completion_tokens : this.tokens.length;
      this.foot.textContent = count + " tokens in " + seconds.toFixed(1) + " s" +
        (why === "length" ? ", cut at the limit" : "");
    } catch (error) {
      if (error.name === "AbortError") this.foot.textContent = "stopped";
      else {
        this.foot.className = "foot error";
        this.foot.textContent = error instanceof TypeError ? "the server does not answer" : error.message;
      }
    }
    if (chat && text) this.turns = messages.concat([{role: "assistant", content: text}]);
    schedule();
  }
  /// A piece of an answer; tokens and their alternatives where the server sent them.
  take(piece, logprobs, chat) {
    const list = [];
    if (chat && logprobs && logprobs.content) {
      for (const t of logprobs.content) list.push({text: t.token, logprob: t.logprob, top: t.top_logprobs || []});
    } else if (!chat && logprobs && logprobs.tokens) {
      logprobs.tokens.forEach((t, i) => list.push({
        text: t, logprob: logprobs.token_logprobs[i],
        top: Object.entries((logprobs.top_logprobs || [])[i] || {}).map(([token, logprob]) => ({token, logprob}))}));
    }
    // What is shown is the text; tokens divide it. Where they do not spell it, the piece is one token.
    if (list.length === 0 || list.map((t) => t.text).join("") !== piece) {
      if (list.length === 1) this.tokens.push({...list[0], text: piece});
      else if (piece) this.tokens.push({text: piece, logprob: null, top: list.length ? list[0].top : []});
    } else this.tokens.push(...list);
  }
  show(other) {
    if (!this.body) return;
    const at = document.activeElement && this.body.contains(document.activeElement)
      ? Number(document.activeElement.dataset.at) : -1;
    let first = true;
    this.body.replaceChildren(...this.tokens.map((t, i) => {
      const s = make("span", "token", t.text);
      s.dataset.at = i;
      s.tabIndex = i === Math.max(at, 0) ? 0 : -1;
      if (other[i]) {
        s.classList.add("other");
        if (first) s.classList.add("parts");
        first = false;
      }
      return s;
    }));
    if (at >= 0 && this.body.children[at]) this.body.children[at].focus();
  }
}

/// Which tokens of b are in no longest common subsequence with a.
function differing(a, b) {
  const n = a.length, m = b.length, w = m + 1;
  if (n * m > 4e6) return b.map((t, i) => !a[i] || a[i].text !== t.text);
  const best = new Uint16Array((n + 1) * w);
  for (let i = n - 1; i >= 0; --i) {
    for (let j = m - 1; j >= 0; --j) {
      best[i * w + j] = a[i].text === b[j].text ? best[(i + 1) * w + j + 1] + 1
        : Math.max(best[(i + 1) * w + j], best[i * w + j + 1]);
    }
  }
  const other = new Array(m).fill(true);
  for (let i = 0, j = 0; i < n && j < m;) {
    if (a[i].text === b[j].text) { other[j] = false; ++i; ++j; }
    else if (best[(i + 1) * w + j] >= best[i * w + j + 1]) ++i;
    else ++j;
  }
  return other;
}
const shown = (text) => JSON.stringify(text);
const percent = (logprob) => logprob === null || logprob === undefined ? "" : " (" +
  (100 * Math.exp(logprob)).toFixed(1) + " %)";

let drawing = false;
function schedule() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => { drawing = false; mark(); });
}
function mark() {
  columns.forEach((c, i) => c.show(i === 0 ? [] : differing(columns[0].tokens, c.tokens)));
  $("parted").textContent = parted();
}
/// Where the second answer leaves the first.
function parted() {
  if (columns.length < 2 || !columns[0].tokens.length || !columns[1].tokens.length) return "";
  const [a, b] = [columns[0].tokens, columns[1].tokens];
  let i = 0;
  while (i < a.length && i < b.length && a[i].text === b[i].text) ++i;
  if (i >= a.length || i >= b.length) return a.length === b.length && !abort ? "Both answers are the same." : "";
  const same = i === 0 ? "They part at the first token: " : "The first " +
    (i === 1 ? "token is" : i + " tokens are") + " the same; then ";
  return same + columns[0].model + " says " +
    shown(a[i].text) + percent(a[i].logprob) + " and " + columns[1].model + " says " + shown(b[i].text) +
    percent(b[i].logprob) + ".";
}

const tokenOf = (target) => target instanceof Element ? target.closest(".token") : null;
function tip(element) {
  const box = $("tip");
  if (!element) { box.hidden = true; return; }
  const token = element.parentElement.tokens[Number(element.dataset.at)];
  if (!token || !token.top.length) { box.hidden = true; return; }
  const table = make("table");
  table.append(make("caption", "hidden", "Likeliest tokens here"));
  for (const t of token.top) {
    const row = make("tr");
    row.append(make("th", "", shown(t.token)), make("td", "", (100 * Math.exp(t.logprob)).toFixed(1) + " %"));
    table.append(row);
  }
  box.replaceChildren(table);
  box.hidden = false;
  const at = element.getBoundingClientRect(), size = box.getBoundingClientRect();
  box.style.left = Math.max(4, Math.min(at.left, innerWidth - size.width - 4)) + "px";
  box.style.top = (at.bottom + size.height + 8 < innerHeight ? at.bottom + 4 : at.top - size.height - 4) + "px";
  element.setAttribute("aria-describedby", "tip");
}
document.addEventListener("mouseover", (e) => tip(tokenOf(e.target)));
document.addEventListener("focusin", (e) => tip(tokenOf(e.target)));
document.addEventListener("keydown", (e) => {
  const token = tokenOf(e.target);
  if (e.key === "Escape") { if ($("tip").hidden) $("stop").click(); else tip(null); return; }
  if (!token || (e.key !== "ArrowRight" && e.key !== "ArrowLeft")) return;
  const next = e.key === "ArrowRight" ? token.nextElementSibling : token.previousElementSibling;
  if (!next) return;
  e.preventDefault();
  token.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});

$("question").addEventListener("keydown", (e) => {
  if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) { e.preventDefault(); $("ask").requestSubmit(); }
});
$("ask").addEventListener("submit", async (e) => {
  e.preventDefault();
  const question = $("question").value;
  if (abort || !question.trim()) return;
  problem("");
  for (const id of ["max_tokens", "temperature", "top_p", "seed"]) {
    if (!$(id).checkValidity()) {
      problem(id + ": " + $(id).validationMessage);
      document.querySelector("details.settings").open = true;
      $(id).focus();
      return;
    }
  }
  if (!models.length && !(await load())) return;
  abort = new AbortController();
  busy(true);
  await Promise.all(columns.map((c) => c.ask(question, abort.signal)));
  abort = null;
  busy(false);
  mark();
  if ($("form").value === "chat" && columns.every((c) => !c.foot.classList.contains("error"))) $("question").value = "";
});
function busy(on) {
  $("send").disabled = on;
  $("stop").disabled = !on;
  $("reset").disabled = on;
  $("add").disabled = on;
  columns.forEach((c) => { c.remove.disabled = on; c.select.disabled = on; c.scale.disabled = on; });
}
$("stop").addEventListener("click", () => { if (abort) abort.abort(); });
$("reset").addEventListener("click", () => { columns.forEach((c) => c.reset()); mark(); $("question").focus(); });
$("add").addEventListener("click", () => {
  if (!models.length) return;
  columns.push(new Column(models[Math.min(columns.length, models.length - 1)].id));
  mark();
});
$("unlock").addEventListener("submit", (e) => { e.preventDefault(); load(); });

async function load() {
  try {
    const response = await fetch("v1/models", {headers: headers()});
    if (!response.ok) { problem(await failure(response)); return false; }
    models = (await response.json()).data;
  } catch (error) {
    problem("the server does not answer");
    return false;
  }
  problem("");
  $("unlock").hidden = true;
  if (columns.length) columns.forEach((c) => c.fill(c.select.value));
  else for (const m of models.slice(0, 4)) columns.push(new Column(m.id));
  document.title = "Compare: " + models.map((m) => m.id).join(", ");
  return true;
}
load();
)js";

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
