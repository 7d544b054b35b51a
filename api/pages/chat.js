// A chat with a model over /v1/chat/completions. The key stays in this tab: sessionStorage, never a URL.
"use strict";

const $ = (id) => document.getElementById(id);
let said = []; // the conversation as the model is shown it
let running = null; // the AbortController of the answer that comes
let unlisted = ""; // why the models could not be listed: the next list takes that back, and nothing that ask() said

$("key").value = sessionStorage.getItem("key") || "";
$("key").addEventListener("change", () => {
  sessionStorage.setItem("key", $("key").value.trim());
  listModels();
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask();
  }
});
$("stop").addEventListener("click", () => running?.abort()); // the server hears that we hang up, and frees the engine
$("anew").addEventListener("click", () => {
  running?.abort();
  said = []; // an answer that still comes belongs to the old one
  $("talk").replaceChildren();
  tell("");
});
listModels();

function headers() {
  return { Authorization: `Bearer ${$("key").value.trim()}`, "Content-Type": "application/json" };
}

function tell(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

function show(role, text) {
  const bubble = document.createElement("p");
  bubble.className = `said ${role}`;
  bubble.textContent = text;
  $("talk").append(bubble);
  bubble.scrollIntoView({ block: "end" });
  return bubble;
}

function options() { // an empty field is not sent
  const given = { temperature: $("temperature").value, max_completion_tokens: $("max_tokens").value };
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value).map(([name, value]) => [name, Number(value)]));
}

async function listModels() {
  if (!$("key").value.trim()) return;
  try {
    const answer = await fetch("/v1/models", { headers: headers() });
    if (!answer.ok) return tell((unlisted = await why(answer)), true);
    const names = (await answer.json()).data.map((model) => new Option(model.id, model.id));
    $("models").replaceChildren(...names);
    if (!$("model").value && names.length) $("model").value = names[0].value;
    if ($("status").textContent === unlisted) tell("");
  } catch (error) {
    tell((unlisted = `The server cannot be reached: ${error.message}`), true);
  }
}

async function ask() {
  const prompt = $("prompt").value.trim();
  if (!prompt || running) return;
  if (!$("key").value.trim()) {
    tell("Type your API key first, in the field above. `nightmill up` says in which file the operator's key is.", true);
    return $("key").focus();
  }
  $("prompt").value = "";
  const question = show("user", prompt);
  const talk = said;
  const messages = [...talk, { role: "user", content: prompt }];
  const bubble = show("assistant", "");
  await answering(messages, bubble);
  if (!bubble.textContent) { // it failed: its text can be sent again, and the next question goes without it
    bubble.remove();
    question.remove();
    if (!$("prompt").value) $("prompt").value = prompt;
    return;
  }
  talk.push({ role: "user", content: prompt }, { role: "assistant", content: bubble.textContent });
}

async function answering(messages, bubble) {
  running = new AbortController();
  const mine = running;
  $("send").disabled = true;
  $("stop").disabled = false;
  tell("…");
  try {
    const body = JSON.stringify({ model: $("model").value.trim(), messages, stream: true, ...options() });
    const answer = await fetch("/v1/chat/completions", { method: "POST", headers: headers(), body, signal: mine.signal });
    if (!answer.ok) return tell(await why(answer), true);
    let cut = false;
    for await (const data of events(answer.body)) {
      if (data.error) return tell(data.error.message, true);
      bubble.textContent += data.choices[0]?.delta?.content ?? "";
      bubble.scrollIntoView({ block: "end" });
      cut ||= data.choices[0]?.finish_reason === "length";
    }
    tell(cut ? "The answer was cut off at the token limit: raise Max tokens for a longer one." : "");
  } catch (error) {
    tell(error.name === "AbortError" ? "Stopped." : `It broke off: ${error.message}`, error.name !== "AbortError");
  } finally {
    if (running === mine) running = null;
    $("send").disabled = false;
    $("stop").disabled = true;
  }
}

async function* events(stream) {
  let rest = "";
  for await (const text of pieces(stream.pipeThrough(new TextDecoderStream()))) {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

async function* pieces(stream) {
  const reader = stream.getReader(); // Safari cannot iterate over a stream
  for (let read = await reader.read(); !read.done; read = await reader.read()) yield read.value;
}

async function why(answer) {
  const error = (await answer.json().catch(() => ({}))).error;
  return error?.message || `The server answered ${answer.status}.`;
}
