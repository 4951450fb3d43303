// qlora/serve/probe_script.hpp — what the page of compare_page.hpp does with questions whose answers are known, in
// JavaScript. Behind compare_script.hpp, whose names it uses.
#pragma once

#include <string_view>

namespace qlora {
inline namespace v0 {
namespace serve {

/// Probes, put to the variants in the columns, and their verdicts.
inline constexpr std::string_view probe_script = R"js(
// Probes: asked of the variants in the columns; verdicts stay until the page is left.
let probes = [];
let drawn = null;         // for which variants the table is
const verdicts = new Map();  // by "MODEL\nPROBE": {text, right, twin} or {error}
const of = (model, probe) => verdicts.get(model + "\n" + probe.probe);
const chosen = () => probes.filter((p) => p.kind === $("probe_kind").value);
const variants = () => [...new Set(columns.map((c) => c.model))];
async function loadProbes() {
  const response = await fetch("probes", {headers: headers()});
  if (!response.ok) return;
  probes = (await response.json()).data;
  $("probes").hidden = !probes.length;
  $("probe_kind").replaceChildren(...[...new Set(probes.map((p) => p.kind))].map((kind) => {
    const o = make("option", "", kind + " (" + probes.filter((p) => p.kind === kind).length + ")");
    o.value = kind;
    return o;
  }));
  drawProbes();
}
function drawProbes() {
  drawn = columns.map((c) => c.model).join("\n");
  if (!probes.length) return;
  const table = make("table"), head = make("thead"), body = make("tbody"), top = make("tr");
  top.append(...["Question", "Expected", ...variants()].map((text) => {
    const th = make("th", "", text);
    th.scope = "col";
    return th;
  }));
  head.append(top);
  for (const p of chosen()) {
    const row = make("tr"), ask = make("button", "link", p.prompt), question = make("td");
    ask.type = "button";
    ask.addEventListener("click", () => {
      $("form").value = p.form;
      $("question").value = p.prompt;
      $("question").focus();
    });
    question.append(ask);
    row.append(question, make("td", "", p.expects.join(" / ") || "an answer that ends"));
    for (const model of variants()) {
      const cell = make("td");
      cell.dataset.model = model;
      cell.dataset.probe = p.probe;
      row.append(cell);
      judge(cell, of(model, p));
    }
    body.append(row);
  }
  table.append(head, body);
  $("probe_table").replaceChildren(table);
  sums();
}
function judge(cell, verdict) {
  cell.className = !verdict ? "" : verdict.error ? "error" : verdict.right ? "right" : "wrong";
  cell.textContent = "";
  if (!verdict) return;
  if (!verdict.error) cell.append(make("span", "hidden", verdict.right ? "right: " : "wrong: "));
  cell.append(verdict.error || verdict.text.trim());
}
/// Right replies of each variant, of each kind that was asked.
function sums() {
  const lines = [];
  for (const kind of new Set(probes.map((p) => p.kind))) {
    const parts = variants().map((model) => {
      const got = probes.filter((p) => p.kind === kind).map((p) => of(model, p)).filter((v) => v && !v.error);
      return got.length ? model + " " + got.filter((v) => v.right).length + " of " + got.length : "";
    }).filter((text) => text);
    if (parts.length) lines.push(make("p", "summary", kind + ": " + parts.join(", ")));
  }
  $("probe_sums").replaceChildren(...lines);
}
async function askProbe(model, probe, signal) {
  for (;;) {
    const response = await fetch("probes", {method: "POST", headers: headers(), signal,
                                            body: JSON.stringify({model, probe: probe.probe})});
    if (response.status === 429) {  // others ask too: wait for room
      await new Promise((go) => setTimeout(go, 1000 * Number(response.headers.get("Retry-After") || 1)));
      if (signal.aborted) throw new DOMException("stopped", "AbortError");
      continue;
    }
    return response.ok ? response.json() : {error: await failure(response)};
  }
}
$("probe_kind").addEventListener("change", drawProbes);
$("probe_all").addEventListener("click", async () => {
  if (abort || !probes.length) return;
  problem("");
  abort = new AbortController();
  busy(true);
  const jobs = chosen().flatMap((p) => variants().map((m) => [m, p])).filter(([m, p]) => {
    const v = of(m, p);
    return !v || v.error;
  });
  const work = async () => {
    for (let job = jobs.shift(); job && !abort.signal.aborted; job = jobs.shift()) {
      const [model, probe] = job;
      const verdict = await askProbe(model, probe, abort.signal);
      verdicts.set(model + "\n" + probe.probe, verdict);
      for (const cell of $("probe_table").querySelectorAll("td[data-probe='" + probe.probe + "']")) {
        if (cell.dataset.model === model) judge(cell, verdict);
      }
      sums();
    }
  };
  try {
    await Promise.all([work(), work(), work(), work()]);
  } catch (error) {
    if (error.name !== "AbortError") problem(error instanceof TypeError ? "the server does not answer" : error.message);
  }
  abort = null;
  busy(false);
});
)js";

}  // namespace serve
}  // namespace v0
}  // namespace qlora
