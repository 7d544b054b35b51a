"""Run a batch of chats and a batch of embeddings at once, wait for their webhooks, check the results and use them.

    docstrings ─┬─▶ a batch of chats: a summary of each ──┐
                └─▶ a batch of embeddings ────────────────┴─▶ webhooks ─▶ results, one for each request ─▶ a search

OPENAI_BASE_URL and OPENAI_API_KEY name the server. The requests and their results are left in the current folder.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from operator import mul
from pathlib import Path
from typing import Any

from corpus import Docstring, docstrings
from openai import OpenAI
from webhooks import registered

TASK = "You write documentation. Answer with one short sentence."
QUESTIONS = ["read a CSV file", "wait for a thread to end", "the average of some numbers"]
ENDS = ("completed", "failed", "expired", "cancelled")
MARK = {"made_by": "nightmill demo"}
client = OpenAI()


def submit(title: str, url: Any, bodies: dict[str, Any]) -> str:
    """Upload a file with a line for each request, and create a batch of it; return the id of the batch."""
    lines = [{"custom_id": name, "method": "POST", "url": url, "body": body} for name, body in bodies.items()]
    path = Path(f"{title}.jsonl")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = client.files.create(file=path, purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=url, completion_window="24h", metadata=MARK).id


def follow(batches: dict[str, str]) -> dict[str, Any]:
    """Print the progress of batches until all have ended. Return them as jobs, which say what they wait for."""
    jobs: dict[str, Any] = {}
    printed: dict[str, Any] = {}
    while not jobs or any(job["status"] not in ENDS for job in jobs.values()):
        time.sleep(0.5)
        for title, batch_id in batches.items():
            job = jobs[title] = client.get(f"/jobs/{batch_id}", cast_to=object)  # a route of Nightmill's own
            done, total = job["progress"]["completed"] + job["progress"]["failed"], job["progress"]["total"]
            state = (job["waiting_for"] or job["status"]).replace("_", " ")
            stage = state, total and 4 * done // total
            if stage != printed.get(title):
                print(f"{title}: {done}/{total} {state}")
                printed[title] = stage
    return jobs


def download(title: str, job: Any) -> list[Any]:
    """Return the lines of the output file and of the error file, which are kept beside the requests."""
    lines: list[Any] = []
    for kind in ("output", "error"):
        if file_id := job[f"{kind}_file_id"]:
            content = client.files.content(file_id).content
            Path(f"{title}-{kind}.jsonl").write_bytes(content)
            lines += map(json.loads, content.splitlines())
    return lines


def faults(job: Any, names: set[str], lines: list[Any], event: str | None) -> Iterator[str]:
    """Say what differs from one good result for each request, and one verified webhook."""
    good = Counter(line["custom_id"] for line in lines if (line["response"] or {}).get("status_code") == 200)
    if job["status"] != "completed":
        yield f"it is {job['status']}: {job['errors']}"
    if good != Counter(names):
        yield f"{good.total()} of {len(lines)} results are good, for {len(names)} requests"
    if event != "batch.completed":
        yield f"no verified webhook batch.completed came ({event})"


def nearest(vector: list[float], among: dict[str, list[float]], count: int) -> list[str]:
    """Return the names of the vectors that are nearest, best first. All vectors have the length 1."""
    return sorted(among, key=lambda name: -sum(map(mul, vector, among[name])))[:count]


def show(texts: list[Docstring], summaries: dict[str, Any], embeddings: dict[str, Any]) -> None:
    """Print some of the summaries, and the docstrings that are nearest in meaning to each question."""
    for n in range(0, len(summaries), max(1, len(summaries) // 12)):
        summary = " ".join((summaries[f"chat-{n}"]["choices"][0]["message"]["content"] or "").split())
        print(f"  {texts[n].name:<32.32} {''.join(filter(str.isprintable, summary)):.100}")
    vectors = {name: body["data"][0]["embedding"] for name, body in embeddings.items()}
    documents = {one.name: vectors[f"doc-{n}"] for n, one in enumerate(texts)}
    for n, question in enumerate(QUESTIONS):
        print(f"  {question:<32} {', '.join(nearest(vectors[f'question-{n}'], documents, 3))}")


def main() -> None:
    parser = argparse.ArgumentParser(description="run a batch of chats and a batch of embeddings at once")
    parser.add_argument("--chats", type=int, default=128)
    parser.add_argument("--documents", type=int, default=480)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--embedding-model", default="all-minilm-l6-v2")
    options = parser.parse_args()

    texts = docstrings(max(options.chats, options.documents))
    inputs = {f"doc-{n}": f"{one.name}: {one.text}" for n, one in enumerate(texts)}
    inputs |= {f"question-{n}": question for n, question in enumerate(QUESTIONS)}
    embeddings = {name: {"model": options.embedding_model, "input": text} for name, text in inputs.items()}
    same = {"model": options.model, "max_tokens": options.max_tokens, "temperature": 0}
    chats = {}
    for n, one in enumerate(texts[: options.chats]):
        prompt = f"Summarise in one sentence what `{one.name}` is for:\n\n{one.text}"
        messages = [{"role": "system", "content": TASK}, {"role": "user", "content": prompt}]
        chats[f"chat-{n}"] = {**same, "messages": messages}
    for batch in client.batches.list(limit=100):
        if batch.metadata == MARK and batch.status not in ENDS:
            client.batches.cancel(batch.id)  # an interrupted run has left it

    with registered(client) as events:
        batches = {
            "summaries": submit("summaries", "/v1/chat/completions", chats),
            "embeddings": submit("embeddings", "/v1/embeddings", embeddings),
        }
        print(f"uploaded {len(chats)} chat and {len(embeddings)} embedding requests, created two batches")
        jobs = follow(batches)
        deadline = time.monotonic() + 30
        while not set(batches.values()) <= events.keys() and time.monotonic() < deadline:
            time.sleep(0.1)

    wrong, results = [], {}
    for title, requests in (("summaries", chats), ("embeddings", embeddings)):
        lines = download(title, jobs[title])
        event = events.get(batches[title])
        wrong += [f"  {title}: {fault}" for fault in faults(jobs[title], set(requests), lines, event)]
        results[title] = {line["custom_id"]: line["response"]["body"] for line in lines if line["response"]}
    if wrong:
        sys.exit("\n".join(["the batches are not complete:", *wrong]))
    show(texts, results["summaries"], results["embeddings"])
    for title, job in jobs.items():
        usage = job["usage"]
        tokens = f"{usage['input_tokens']} tokens in, {usage['output_tokens']} out, {job['worked_seconds']:.0f} s"
        print(f"{title}: {job['progress']['completed']} requests, {tokens}; {events[batches[title]]}, verified")


if __name__ == "__main__":
    main()
