// The report of an evaluation run, by /v1/evals. The key stays in this tab: sessionStorage, never a URL. What a run holds
// is others' text: it is written as textContent, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const LIVE = ["queued", "in_progress"];
const LOOK_MS = 2000;
const PAGE = 20;
const [, evalId, runId] = /^#(eval_\w+)\/(evalrun_\w+)$/.exec(location.hash) || [];
let starts = [""]; // the cursors of the pages up to the one that is shown
let last = ""; // the last item of the page that is shown
let timer = 0;

$("key").value = sessionStorage.getItem("key") || "";
$("key").addEventListener("change", () => {
  sessionStorage.setItem("key", $("key").value.trim());
  showAll();
});
$("filter").addEventListener("change", () => {
  starts = [""];
  showItems();
});
$("next").addEventListener("click", () => {
  starts.push(last);
  showItems();
});
$("previous").addEventListener("click", () => {
  starts.pop();
  showItems();
});
window.addEventListener("hashchange", () => location.reload());
showAll();

function tell(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

function element(name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

async function load(path) {
  const headers = { Authorization: `Bearer ${$("key").value.trim()}` };
  const answer = await fetch(`/v1/evals/${evalId}/runs/${runId}${path}`, { headers });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error?.message || `The server answered ${answer.status}.`);
  return body;
}

async function showAll() {
  clearTimeout(timer);
  timer = 0;
  if (!runId) return tell("This address names no run: open the report_url of one.", true);
  if (!$("key").value.trim()) {
    tell("Type your API key, in the field above.", true);
    return $("key").focus();
  }
  starts = [""];
  if (await showRun()) await showItems();
}

/** Show the run, and look again while it goes on. */
async function showRun() {
  try {
    const run = await load("");
    $("run").hidden = false;
    showFacts(run);
    showCounts(run.result_counts);
    showTables(run);
    tell(LIVE.includes(run.status) ? "The run goes on: the counts follow it." : "");
    if (LIVE.includes(run.status)) timer = setTimeout(showRun, LOOK_MS);
    else if (timer) {
      timer = 0;
      await showItems(); // of a run that has ended meanwhile
    }
    return true;
  } catch (error) {
    $("run").hidden = true;
    tell(error.message, true);
    return false;
  }
}

function showFacts(run) {
  $("name").textContent = run.name;
  const facts = {
    Status: run.status,
    Model: run.model || "none: the items have their samples",
    Created: new Date(run.created_at * 1000).toLocaleString(),
    Eval: run.eval_id,
    Run: run.id,
    Error: run.error && `${run.error.code}: ${run.error.message}`,
    ...run.metadata,
  };
  const rows = Object.entries(facts).filter(([, value]) => value);
  $("facts").replaceChildren(...rows.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

function showCounts(counts) {
  const shown = ["total", "passed", "failed", "errored"].map((name) => {
    const row = element("li", name);
    row.prepend(element("b", String(counts[name])));
    return row;
  });
  $("counts").replaceChildren(...shown);
  const parts = ["passed", "failed", "errored"].filter((name) => counts[name]).map((name) => {
    const part = element("span", "", name);
    part.style.flexGrow = counts[name]; // through the object model, which the policy of styles allows
    return part;
  });
  $("bar").replaceChildren(...parts);
  $("bar").setAttribute("aria-label", `${counts.passed} of ${counts.total} items passed`);
}

function showTables(run) {
  const share = (row) => (row.passed / (row.passed + row.failed + row.errored) || 0).toFixed(3);
  const criteria = run.per_testing_criteria_results || [];
  $("criteria").replaceChildren(
    ...criteria.map((row) => tableRow(row.testing_criteria, row.passed, row.failed, row.errored, share(row))),
  );
  const usage = run.per_model_usage || [];
  $("usage").replaceChildren(
    ...usage.map((row) => tableRow(row.model_name, row.invocation_count, row.prompt_tokens, row.completion_tokens)),
  );
}

function tableRow(...cells) {
  const row = document.createElement("tr");
  row.append(...cells.map((cell) => element("td", String(cell))));
  return row;
}

async function showItems() {
  const query = new URLSearchParams({ limit: PAGE });
  if (starts.at(-1)) query.set("after", starts.at(-1));
  if ($("filter").value) query.set("status", $("filter").value);
  try {
    const page = await load(`/output_items?${query}`);
    last = page.last_id;
    $("items").replaceChildren(...page.data.map(itemRow));
    $("previous").disabled = starts.length === 1;
    $("next").disabled = !page.has_more;
  } catch (error) {
    tell(error.message, true);
  }
}

function itemRow(item) {
  const row = document.createElement("details");
  const scores = item.results.map((result) => `${result.name} ${result.error ? result.error.code : result.score}`);
  const head = element("summary", "");
  head.append(element("span", item.status, `mark ${item.status}`), `item ${item.datasource_item_id} · ${scores.join(" · ")}`);
  row.append(head);
  row.addEventListener("toggle", () => row.open && row.childElementCount === 1 && row.append(...itemBody(item)));
  return row;
}

function itemBody(item) {
  const texts = (messages) => messages.map((message) => `${message.role}: ${asText(message.content)}`).join("\n");
  const parts = {
    Item: asText(item.datasource_item),
    Asked: texts(item.sample.input),
    Answer: texts(item.sample.output),
    "No answer": item.sample.error && `${item.sample.error.code}: ${item.sample.error.message}`,
    Results: asText(item.results),
  };
  const shown = Object.entries(parts).filter(([, text]) => text);
  return shown.flatMap(([name, text]) => [element("h3", name), element("pre", text)]);
}

function asText(value) {
  return typeof value === "string" ? value : JSON.stringify(value, null, 2);
}
