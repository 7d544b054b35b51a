"""Release a model: train it, evaluate it, promote it through a gate, and have a worse version rolled back by itself.

    a few examples ─▶ version 1 ─▶ train ─▶ gate: refused
    all examples ───▶ version 2 ─▶ train ─▶ gate: promoted ─▶ the alias
    a fifth of the requests to the first model ─▶ slower answers ─▶ rolled back, confirmed by an answer

The gate asks that 80 % of held-out answers have the form of the examples. Exit code 1 unless all ends as shown.
OPENAI_BASE_URL and OPENAI_API_KEY name the server, which calls this machine only if it was started with
NIGHTMILL_WEBHOOK_ALLOW_PRIVATE=true.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from corpus import Docstring, docstrings, entry, question
from openai import NotFoundError, OpenAI, OpenAIError
from webhooks import registered

BASE = "smollm2-135m-instruct"
ALIAS = DATASET = "entries"
HELD_OUT = 24
FEW = 16  # examples, too few to learn from
FORM = r"^@entry \S+\n@module \S+\n@about \S[^\n]*\s*$"
MIN_SCORE = 0.8
CANARY = 20  # percent
CLIENTS = 8
ROLLED_BACK = "model.alias.rolled_back"
MARK = {"made_by": "nightmill demo"}
client = OpenAI()


def post(path: str, body: Any) -> Any:
    return client.post(path, body=body, cast_to=object)


def get(path: str, **query: Any) -> Any:
    return client.get(path, options={"params": query}, cast_to=object)


def upload(name: str, rows: list[Any], purpose: Any) -> str:
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    return client.files.create(file=(name, content), purpose=purpose).id


def run_command(*words: str) -> None:
    """Run a command of nightmill against the server."""
    command = [sys.executable, "-m", "cli", *words, "--url", str(client.base_url).removesuffix("/v1/")]
    key = {"NIGHTMILL_API_KEY": client.api_key, "COLUMNS": "140"}
    subprocess.run(command, check=True, env={**os.environ, **key})  # noqa: S603 (ours)


def prepare(held_out: list[Docstring]) -> Mapping[str, Any]:
    """Make the alias, the dataset and the eval; return the gate of both releases."""
    for path in (f"/aliases/{ALIAS}", f"/datasets/{DATASET}"):
        with suppress(NotFoundError):
            client.delete(path, cast_to=object)  # of an earlier run
    post("/aliases", {"id": ALIAS, "model": BASE})
    post("/datasets", {"name": DATASET})
    form = {"type": "regex", "name": "form", "input": "{{ sample.output_text }}", "pattern": FORM}
    schema = {"type": "object", "properties": {"question": {"type": "string"}}}
    config: Any = {"type": "custom", "item_schema": schema, "include_sample_schema": True}
    criteria: Any = [form]
    made = client.evals.create(name="entries", data_source_config=config, testing_criteria=criteria, metadata=MARK)
    system, _ = question(held_out[0])
    items = [{"item": {"question": question(text)[1]["content"]}} for text in held_out]
    source = {
        "type": "completions",
        "model": ALIAS,
        "source": {"type": "file_id", "id": upload("held-out.jsonl", items, "evals")},
        "input_messages": {
            "type": "template",
            "template": [system, {"role": "user", "content": "{{ item.question }}"}],
        },
        "sampling_params": {"temperature": 0, "max_completion_tokens": 96},
    }
    return {"eval_id": made.id, "data_source": source, "rule": {"type": "minimum", "score": MIN_SCORE}}


def release(name: str, texts: list[Docstring], gate: Mapping[str, Any]) -> tuple[str, str]:
    """Add examples to the dataset, train on them and promote the model; return its name and how the promotion ended."""
    rows = [{"messages": [*question(text), {"role": "assistant", "content": entry(text)}]} for text in texts]
    file_id = upload(f"{name}.jsonl", rows, "user_data")
    hyperparameters = {"n_epochs": 1, "batch_size": 4, "learning_rate_multiplier": 3.0}
    training = {
        "model": BASE,
        "training_file": "{{examples.reference}}/all",
        "suffix": name,
        "seed": 7,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
    }
    target = {"type": "alias", "id": ALIAS, "model": "{{train.fine_tuned_model}}"}
    sources = [{"type": "file_id", "id": file_id}]
    steps = [
        {"name": "examples", "kind": "dataset", "request": {"dataset": DATASET, "sources": sources}},
        {"name": "train", "kind": "fine_tuning", "request": training},
        {"name": "promote", "kind": "promotion", "request": {"target": target, "gates": [gate], "reason": name}},
    ]
    print(
        f"\n{name}: {len(rows)} examples, and a pipeline that trains a model and promotes it if it learned",
        flush=True,
    )
    made = post("/pipelines", {"name": name, "steps": steps})
    began, shown = time.monotonic(), ""
    while (pipeline := get(f"/pipelines/{made['id']}"))["status"] in ("queued", "in_progress"):
        line = ", ".join(f"{step['name']} {step['status']}" for step in pipeline["steps"])
        if line != shown:
            print(f"{time.monotonic() - began:5.0f} s  {line}", flush=True)
            shown = line
        time.sleep(1)
    run_command("pipelines", "graph", made["id"])
    _, train, promote = pipeline["steps"]
    if promote["job_id"] is None:
        sys.exit(f"{name}: no promotion began: {pipeline['steps']}")
    promotion = get(f"/promotions/{promote['job_id']}")
    run_command("promote", "show", promotion["id"])
    model = client.fine_tuning.jobs.retrieve(train["job_id"]).fine_tuned_model
    return str(model), promotion["status"]


class Load:
    """Ask the alias from several clients at once, until the block ends."""

    def __init__(self, texts: list[Docstring]) -> None:
        self.answered: Counter[str] = Counter()
        self.failed = 0
        self._texts = itertools.cycle(texts)
        self._end = threading.Event()
        self._pool = ThreadPoolExecutor(CLIENTS)

    def __enter__(self) -> "Load":
        for _ in range(CLIENTS):
            self._pool.submit(self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._pool.shutdown()

    def _ask(self) -> None:
        while not self._end.is_set():
            messages: Any = question(next(self._texts))
            try:
                chat = client.chat.completions.create(model=ALIAS, messages=messages, max_tokens=192, temperature=0)
                self.answered[chat.model] += 1
            except OpenAIError:
                self.failed += 1


def roll_out(bad: str, good: str, texts: list[Docstring], patience: float) -> None:
    """Give a fifth of the requests to the worse model, and wait until it is rolled back by itself."""
    targets = [{"model": good, "weight": 100 - CANARY}, {"model": bad, "weight": CANARY}]
    print(f"\na canary: {CANARY} % of the requests of {CLIENTS} clients go to the refused model", flush=True)
    with registered(client, [ROLLED_BACK]) as events, Load(texts) as load:
        post(f"/aliases/{ALIAS}", {"targets": targets, "reason": "canary"})
        began = time.monotonic()
        while ROLLED_BACK not in events.values():
            if time.monotonic() - began > patience:
                sys.exit(f"nothing was rolled back in {patience:.0f} s: {dict(load.answered)}")
            time.sleep(1)
        print(f"{time.monotonic() - began:5.0f} s  the webhook {ROLLED_BACK} came")
    asked = load.answered.total()
    for model, count in load.answered.most_common():
        print(f"        {count:4} answers of {model}, {100 * count / asked:.0f} %")
    if load.failed:
        sys.exit(f"{load.failed} requests failed")
    run_command("aliases", "moves", ALIAS)
    now = get(f"/aliases/{ALIAS}")["model"]
    if now != good:
        sys.exit(f"the alias stands for {now}")
    run_command("models", "lineage", good)


def main() -> None:
    parser = argparse.ArgumentParser(description="release a model through a gate and a canary")
    parser.add_argument("--rows", type=int, default=160, help="how many examples the good model learns from")
    parser.add_argument("--patience", type=float, default=900.0, help="seconds to wait for the roll-back")
    options = parser.parse_args()
    texts = docstrings(options.rows + HELD_OUT)
    held_out = texts[options.rows :]
    gate = prepare(held_out)
    ends = [release(name, texts[:count], gate) for name, count in (("few", FEW), ("all", options.rows))]
    (bad, refused), (good, promoted) = ends
    if (refused, promoted) != ("refused", "promoted"):
        sys.exit(f"the promotions ended {refused} and {promoted}")
    roll_out(bad, good, held_out, options.patience)


if __name__ == "__main__":
    try:
        main()
    except OpenAIError as error:
        sys.exit(str(error))
