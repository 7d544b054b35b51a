"""Fine-tune a model, and ask the result by its name, in a batch and in a chat.

    docstrings ─▶ examples ─▶ a job, watched ─▶ a batch of the tuned model, one of its base ─▶ two shares, a chat

The examples answer in a form of three lines, which no prompt asks for. Both models are asked about twenty docstrings
that are held out. Exit code 1 unless at least 16 answers of the tuned model have the form, and at most 2 of the base.
OPENAI_BASE_URL and OPENAI_API_KEY name the server.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from corpus import Docstring, docstrings, entry, entry_name, question
from openai import OpenAI

BASE = "smollm2-135m-instruct"
HELD_OUT = 20
MIN_TUNED_SHARE, MAX_BASE_SHARE = 0.8, 0.1  # of the answers that have the trained form
ENDS = ("completed", "failed", "expired", "cancelled")
MARK = {"made_by": "nightmill demo"}
client = OpenAI()


def jsonl(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def train(texts: list[Docstring]) -> str:
    """Train an adapter for one epoch, and print the events of the job; return the name of the tuned model."""
    rows = [{"messages": [*question(one), {"role": "assistant", "content": entry(one)}]} for one in texts]
    file = client.files.create(file=("examples.jsonl", jsonl(rows)), purpose="fine-tune")
    hyperparameters: Any = {"n_epochs": 1, "batch_size": 4, "learning_rate_multiplier": 3.0}
    job = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=file.id,
        suffix="entries",
        seed=7,
        metadata=MARK,
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
    )
    print(f"uploaded {len(rows)} examples, docstrings of this Python; created a fine-tuning job")
    began = time.monotonic()
    seen: set[str] = set()
    while True:
        ended = job.finished_at is not None
        for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=100).data):
            if event.id not in seen:
                print(f"{time.monotonic() - began:5.0f} s  {event.message}")
                seen.add(event.id)
        if ended:
            break
        time.sleep(0.5)
        job = client.fine_tuning.jobs.retrieve(job.id)
    if job.fine_tuned_model is None:
        sys.exit(f"the job has {job.status}: {job.error and job.error.message}")
    return job.fine_tuned_model


def submit(model: str, texts: list[Docstring]) -> str:
    """Create a batch that asks a model about the texts; return its id."""
    url: Any = "/v1/chat/completions"
    bodies = [{"model": model, "messages": question(one), "max_tokens": 96, "temperature": 0} for one in texts]
    lines = [{"custom_id": str(n), "method": "POST", "url": url, "body": body} for n, body in enumerate(bodies)]
    file = client.files.create(file=("held-out.jsonl", jsonl(lines)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=url, completion_window="24h", metadata=MARK).id


def answers(batch_id: str, count: int) -> list[str]:
    """Wait until a batch has ended; return its answers in the order of its lines, empty ones for lines that failed."""
    while (batch := client.batches.retrieve(batch_id)).status not in ENDS:
        time.sleep(0.5)
    content = client.files.content(batch.output_file_id).text if batch.output_file_id else ""
    results = {int(row["custom_id"]): row["response"]["body"] for row in map(json.loads, content.splitlines())}
    return [results[n]["choices"][0]["message"]["content"] or "" if n in results else "" for n in range(count)]


def faults(tuned: float, base: float) -> Iterator[str]:
    """Say what is wrong with the shares of answers that have the trained form."""
    if tuned < MIN_TUNED_SHARE:
        yield f"{tuned:.0%} of the tuned model's answers have the trained form, not {MIN_TUNED_SHARE:.0%} or more"
    if base > MAX_BASE_SHARE:
        yield f"{base:.0%} of the base's answers have the trained form, not {MAX_BASE_SHARE:.0%} or less"


def main() -> None:
    parser = argparse.ArgumentParser(description="fine-tune the packaged model")
    parser.add_argument("--rows", type=int, default=160, help="how many examples to train on, 4 for each step")
    options = parser.parse_args()
    texts = docstrings(options.rows + HELD_OUT)
    held_out = texts[options.rows :]
    name = train(texts[: options.rows])
    batches = [submit(model, held_out) for model in (name, BASE)]
    tuned, base = (answers(batch_id, len(held_out)) for batch_id in batches)
    print("\nheld-out prompts, each with the answers of both models")
    for one, ours, theirs in list(zip(held_out, tuned, base, strict=True))[:4]:
        print(f"  {one.name}\n    {ours!r}\n    {theirs!r}")
    shares = [sum(entry_name(text) is not None for text in texts) / len(texts) for texts in (tuned, base)]
    named = sum(entry_name(text) == one.name for text, one in zip(tuned, held_out, strict=True))
    print(f"answers in the trained form: {shares[0]:.0%} of the tuned model, {shares[1]:.0%} of the base")
    print(f"answers of the tuned model that name what was asked about: {named} of {len(held_out)}")
    messages: Any = question(held_out[0])
    chat = client.chat.completions.create(model=name, messages=messages, max_tokens=96, temperature=0)
    print(f"{chat.model} answers in a chat: {chat.choices[0].message.content!r}")
    if wrong := list(faults(*shares)):
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
