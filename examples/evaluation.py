"""Evaluate two prompts on one model, and compare the two runs.

    docstrings ─▶ an eval ─┬─▶ a run with one prompt ───┐
                           └─▶ a run with the other ────┴─▶ nightmill evals compare ─▶ a table, a report

An item is a docstring without its first paragraph; that paragraph, which its author wrote, is the reference. A model
that fine_tuning.py has trained is compared with its base, too, by the form that it was trained to write.
OPENAI_BASE_URL and OPENAI_API_KEY name the server. The reports are left in the current folder.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corpus import docstrings
from openai import OpenAI, OpenAIError

BASE = "smollm2-135m-instruct"
USED = 200  # docstrings from the first on: fine_tuning.py trains on them
ANSWER = "{{ sample.output_text }}"
QUESTION = {"role": "user", "content": "What is `{{ item.name }}` for?\n\n{{ item.details }}"}
TASK = "You write the first line of a docstring: one short sentence that says what the object is for."
#: The same question with a task and two examples.
INSTRUCTED = [
    {"role": "system", "content": TASK},
    {"role": "user", "content": "What is `shop.total` for?\n\nDiscounts are taken off before taxes are added."},
    {"role": "assistant", "content": "Return the sum of all prices in a basket."},
    {"role": "user", "content": "What is `shop.Basket` for?\n\nItems keep their order. It is saved at each change."},
    {"role": "assistant", "content": "A list of the items that a customer wants to buy."},
    QUESTION,
]
#: The question of fine_tuning.py.
TRAINED = [
    {"role": "system", "content": "You document Python."},
    {"role": "user", "content": "What is {{ item.name }}?\n\n{{ item.details }}"},
]
NEAR = {"type": "text_similarity", "input": ANSWER, "reference": "{{ item.summary }}", "pass_threshold": 0.2}
GRADERS = [
    {"type": "regex", "name": "one sentence", "input": ANSWER, "pattern": r"^\s*[^.!?\n]{10,200}[.!?]?\s*$"},
    {**NEAR, "name": "author's words", "evaluation_metric": "rouge_l"},
    {**NEAR, "name": "author's letters", "evaluation_metric": "chrf"},
]
FORM = r"^@entry \S+\n@module \S+\n@about \S[^\n]*\s*$"
TRAINED_FORM = [{"type": "regex", "name": "trained form", "input": ANSWER, "pattern": FORM}]
MARK = {"made_by": "nightmill demo"}
client = OpenAI()


def items(count: int) -> list[dict[str, str]]:
    """Return `count` items, of modules, classes and functions."""
    found = list(_items())
    return found[:: max(1, len(found) // count)][:count]


def _items() -> Iterator[dict[str, str]]:
    for docstring in docstrings(2000)[USED:]:
        summary, _, details = (" ".join(part.split()) for part in docstring.text.partition("\n\n"))
        if 20 <= len(summary) <= 160 and summary.endswith(".") and len(details) >= 60:
            last = docstring.name.rpartition(".")[2]
            kind = "module" if last == docstring.name else "class" if last[0].isupper() else "function"
            yield {"name": docstring.name, "kind": kind, "details": details[:400], "summary": summary}


def compare(title: str, criteria: list[Any], rows: list[dict[str, str]], sides: dict[str, Any]) -> None:
    """Run both sides, each a model and its messages by a name, over the rows, and print how they compare."""
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in rows[0]}}
    config: Any = {"type": "custom", "item_schema": schema, "include_sample_schema": True}
    made = client.evals.create(name=title, data_source_config=config, testing_criteria=criteria, metadata=MARK)
    runs = {}
    for name, (model, messages) in sides.items():
        source: Any = {
            "type": "completions",
            "model": model,
            "source": {"type": "file_content", "content": [{"item": row} for row in rows]},
            "input_messages": {"type": "template", "template": messages},
            "sampling_params": {"temperature": 0, "max_completion_tokens": 48},
        }
        runs[name] = client.evals.runs.create(made.id, name=name, data_source=source).id
    print(f"{title}: {len(rows)} docstrings, {len(criteria)} graders, two runs")
    for name, run_id in runs.items():
        wait(name, run_id, made.id, len(rows))
    report = Path(f"{title.replace(' ', '-')}.html").absolute()
    words = ["evals", "compare", *runs.values(), "--slice-by", "item.kind", "--report", str(report)]
    key = {"NIGHTMILL_API_KEY": client.api_key, "COLUMNS": "140"}
    command = [sys.executable, "-m", "cli", *words, "--url", str(client.base_url).removesuffix("/v1/")]
    subprocess.run(command, check=True, env={**os.environ, **key})  # noqa: S603 (ours)


def wait(name: str, run_id: str, eval_id: str, count: int) -> None:
    """Print the progress of a run until it has ended, and leave unless it has graded every row without an error."""
    shown = ""
    while True:
        run = client.evals.runs.retrieve(run_id, eval_id=eval_id)
        line = f"{name}: {run.status}, {run.result_counts.total} graded"
        if line != shown:
            print(shown := line)
        if run.status not in ("queued", "in_progress"):
            break
        time.sleep(0.5)
    if run.status != "completed":
        sys.exit(f"{name} {run.status}: {run.error.message}")
    if run.result_counts.total != count or run.result_counts.errored:
        sys.exit(f"{name}: not every row is graded without an error: {run.result_counts}")


def main() -> None:
    parser = argparse.ArgumentParser(description="compare two prompts by an eval")
    parser.add_argument("--rows", type=int, default=48, help="how many docstrings to ask about")
    parser.add_argument("--model", default=BASE, help="the model that gets both prompts")
    options = parser.parse_args()
    rows = items(options.rows)
    prompts = {"plain": (options.model, [QUESTION]), "instructed": (options.model, INSTRUCTED)}
    compare("two prompts", GRADERS, rows, prompts)
    tuned = [model for model in client.models.list() if model.id.startswith(f"ft:{BASE}:") and ":ckpt-" not in model.id]
    if tuned:
        newest = max(tuned, key=lambda model: model.created).id
        models = {"base": (BASE, TRAINED), "tuned": (newest, TRAINED)}
        compare("a tuned model and its base", TRAINED_FORM, rows, models)


if __name__ == "__main__":
    try:
        main()
    except OpenAIError as error:
        sys.exit(str(error))
