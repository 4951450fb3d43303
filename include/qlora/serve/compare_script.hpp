// qlora/serve/compare_script.hpp — what the page of compare_page.hpp does with questions and answers, in JavaScript.
#pragma once

#include <string_view>

namespace qlora {
inline namespace v0 {
namespace serve {

/// Variants in columns, their conversations, tokens that differ.
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
let compares = true;  // the server tells how far tokens are from those of another variant
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
  get root() {
    const m = models.find((x) => x.id === this.select.value);
    return m ? m.root : "";
  }
  get model() {
    const id = this.select.value;
    return this.base || Number(this.scale.value) === 1 ? id : id + "@" + this.scale.value;
  }
  title() {
    this.scaleLabel.hidden = this.base;
    this.heading.textContent = this.model;
    if (columns.includes(this)) drawProbes();
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
    const first = columns[0];
    if (this !== first && this.root === first.root && compares) request.against = first.model;
    const started = performance.now();
    let text = "", why = "", usage = null;
    try {
      const send = () => fetch(chat ? "v1/chat/completions" : "v1/completions",
                               {method: "POST", headers: headers(), body: JSON.stringify(request), signal});
      let response = await send();
      if (response.status === 400 && request.against && (await response.clone().json()).error.param === "against") {
        compares = false;  // the server runs one request at a time
        delete request.against;
        response = await send();
      }
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
        (why === "length" ? ", cut at the limit" : "") + this.divergence(request.against);
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
  /// Of all tokens, from the variant that they were compared with.
  divergence(against) {
    const all = this.tokens.filter((t) => typeof t.kl === "number");
    if (!against || !all.length) return "";
    const most = all.reduce((a, b) => b.kl > a.kl ? b : a);
    return "; KL from " + against + " " + nats(all.reduce((sum, t) => sum + t.kl, 0) / all.length) +
      " a token, most " + nats(most.kl) + " at " + shown(most.text);
  }
  /// A piece of an answer; tokens and their alternatives where the server sent them.
  take(piece, logprobs, chat) {
    const list = [];
    if (chat && logprobs && logprobs.content) {
      for (const t of logprobs.content) {
        list.push({text: t.token, logprob: t.logprob, top: t.top_logprobs || [], kl: t.kl});
      }
    } else if (!chat && logprobs && logprobs.tokens) {
      logprobs.tokens.forEach((t, i) => list.push({
        text: t, logprob: logprobs.token_logprobs[i], kl: (logprobs.kl || [])[i],
        top: Object.entries((logprobs.top_logprobs || [])[i] || {}).map(([token, logprob]) => ({token, logprob}))}));
    }
    // What is shown is the text; tokens divide it. Where they do not spell it, the piece is one token.
    if (list.length === 0 || list.map((t) => t.text).join("") !== piece) {
      if (list.length === 1) this.tokens.push({...list[0], text: piece});
      else if (piece) this.tokens.push({text: piece, logprob: null, top: list.length ? list[0].top : [],
        kl: list.some((t) => typeof t.kl === "number") ? Math.max(...list.map((t) => t.kl)) : undefined});
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
      if (t.kl > 0) {
        s.classList.add("kl");
        s.style.setProperty("--kl", Math.min(1, t.kl / 3));
      }
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
const nats = (value) => value.toFixed(value < 0.095 ? 3 : 2) + " nats";
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
  $("legend").hidden = !columns.some((c) => c.tokens.length);
  if (drawn !== columns.map((c) => c.model).join("\n")) drawProbes();
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
  const compared = token && typeof token.kl === "number";
  if (!token || (!token.top.length && !compared)) { box.hidden = true; return; }
  const table = make("table");
  table.append(make("caption", "hidden", "Likeliest tokens here"));
  for (const t of token.top) {
    const row = make("tr");
    row.append(make("th", "", shown(t.token)), make("td", "", (100 * Math.exp(t.logprob)).toFixed(1) + " %"));
    table.append(row);
  }
  box.replaceChildren(table);
  if (compared) box.append(make("div", "foot", "KL from " + columns[0].model + ": " + nats(token.kl)));
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
  $("probe_all").disabled = on;
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
  await loadProbes();
  return true;
}
)js";

}  // namespace serve
}  // namespace v0
}  // namespace qlora
