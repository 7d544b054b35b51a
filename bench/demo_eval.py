"""Evaluate two prompts on the packaged model on this machine, and compare them: `make demo-eval`.

    up ─▶ docstrings ─▶ an eval ─┬─▶ run of one prompt ──┐
                                 └─▶ run of the other ───┴─▶ nightmill evals compare ─▶ a table, a report

The rows are docstrings of this machine's Python, which no prompt repeats and no row of `make demo-finetune` has. An
item is a docstring without its first paragraph; that paragraph, which its author wrote, is the reference of the answer.
Where the data folder has a model that `make demo-finetune` trained, that model and its base are compared too, by the
form that it was trained to write. Exit code 1 unless each run grades every row without an error.
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai.types.evals import RunRetrieveResponse
from rich.console import Console

from bench import demos
from bench.deployment import LIVE_RUN, MARK, Deployment
from cli.demo.corpus import Docstring, docstrings
from cli.errors import CliError

BASE = "smollm2-135m-instruct"
ROWS = 48
_LINES = ("web", "dispatcher", "cpu", "evaluate", "gpu")
_USED = 200  # docstrings from the first on: `make demo-finetune` trains on them
_READ = 2000  # docstrings from which the rows are chosen
_SUMMARY, _DETAILS = (20, 160), (60, 400)  # characters
_MAX_TOKENS = 48
_LOOK_SECONDS = 0.5

Row = dict[str, Any]

_ASK = "What is `{{ item.name }}` for?\n\n{{ item.details }}"
_TASK = "You write the first line of a docstring: one short sentence that says what the object is for."
PLAIN: Sequence[Row] = [{"role": "user", "content": _ASK}]
#: The same question with a task and two examples.
INSTRUCTED: Sequence[Row] = [
    {"role": "system", "content": _TASK},
    {"role": "user", "content": "What is `shop.total` for?\n\nDiscounts are taken off before taxes are added."},
    {"role": "assistant", "content": "Return the sum of all prices in a basket."},
    {
        "role": "user",
        "content": "What is `shop.Basket` for?\n\nItems keep their order. It is saved at each change.",
    },
    {"role": "assistant", "content": "A list of the items that a customer wants to buy."},
    *PLAIN,
]
#: The question of `make demo-finetune`, and the form that it teaches.
TRAINED: Sequence[Row] = [
    {"role": "system", "content": "You document Python."},
    {"role": "user", "content": "What is {{ item.name }}?\n\n{{ item.details }}"},
]
_ENTRY = r"^@entry \S+\n@module \S+\n@about \S[^\n]*\s*$"
_SENTENCE = r"^\s*[^.!?\n]{10,200}[.!?]?\s*$"


@dataclass(frozen=True, slots=True)
class Side:
    """One of two runs: its name, its model and its messages."""

    name: str
    model: str
    messages: Sequence[Row]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    items = rows(options.rows)
    words = [word for url in options.engine_url for word in ("--engine-url", url)] + ["--no-vllm"] * options.no_vllm

    def play(console: Console, mill: Deployment, began: float) -> list[str]:
        console.print(f"the API answers after {time.monotonic() - began:.0f} s")
        return _compare_all(console, mill, items, options.model, began + options.patience)

    return demos.run(options.data_dir, _LINES, play, words)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.demo_eval", description="compare two prompts by an eval")
    parser.add_argument("--data-dir", type=Path, default=Path(".nightmill-demo"))
    parser.add_argument("--rows", type=int, default=ROWS, help="how many docstrings to ask about")
    parser.add_argument("--model", default=BASE, help="the model that gets both prompts")
    parser.add_argument("--engine-url", action="append", default=[], help="use an OpenAI-compatible server")
    parser.add_argument("--no-vllm", action="store_true", help="start no vLLM here")
    parser.add_argument("--patience", type=float, default=1800.0, help="give up after this many seconds")
    return parser.parse_args(arguments)


def _compare_all(console: Console, mill: Deployment, items: Sequence[Row], model: str, deadline: float) -> list[str]:
    """Compare two prompts, and a tuned model with its base where there is one; return what is missing."""
    prompts = Side("plain", model, PLAIN), Side("instructed", model, INSTRUCTED)
    faults = _compared(console, mill, "two prompts", items, prompts, graders(), deadline)
    tuned = tuned_model(mill)
    if tuned is not None and not faults:
        models = Side("base", BASE, TRAINED), Side("tuned", tuned, TRAINED)
        faults = _compared(console, mill, "a tuned model and its base", items, models, [_form()], deadline)
    return faults


# ── rows and graders ──


def rows(count: int) -> list[Row]:
    """Return `count` items, of modules, classes and functions: what a docstring says after its first paragraph."""
    items = [item for docstring in docstrings(_READ)[_USED:] for item in _items_of(docstring)]
    if len(items) < count:
        raise ValueError(f"the standard library of this Python has only {len(items)} such docstrings")
    return items[:: len(items) // count][:count]


def _items_of(docstring: Docstring) -> Iterator[Row]:
    summary, _, rest = docstring.text.partition("\n\n")
    summary, details = " ".join(summary.split()), " ".join(rest.split())[: _DETAILS[1]]
    if _SUMMARY[0] <= len(summary) <= _SUMMARY[1] and summary.endswith(".") and len(details) >= _DETAILS[0]:
        yield {"name": docstring.name, "kind": _kind(docstring.name), "details": details, "summary": summary}


def _kind(name: str) -> str:
    last = name.rpartition(".")[2]
    return "module" if last == name else "class" if last[0].isupper() else "function"


def graders() -> list[Row]:
    """Return the criteria of the prompts: the form of an answer, and how near it is to the author's words."""
    answer = "{{ sample.output_text }}"
    near = {"type": "text_similarity", "input": answer, "reference": "{{ item.summary }}"}
    return [
        {"type": "regex", "name": "one sentence", "input": answer, "pattern": _SENTENCE},
        {**near, "name": "author's words", "evaluation_metric": "rouge_l", "pass_threshold": 0.2},
        {**near, "name": "author's letters", "evaluation_metric": "chrf", "pass_threshold": 0.2},
    ]


def _form() -> Row:
    return {"type": "regex", "name": "trained form", "input": "{{ sample.output_text }}", "pattern": _ENTRY}


# ── runs ──


def tuned_model(mill: Deployment) -> str | None:
    """Return the newest model that was tuned from the packaged one, without its checkpoints; None without any."""
    models = [model for model in mill.client.models.list() if model.id.startswith(f"ft:{BASE}:")]
    whole = [model for model in models if ":ckpt-step-" not in model.id]
    return max(whole, key=lambda model: model.created).id if whole else None


def _compared(
    console: Console,
    mill: Deployment,
    title: str,
    items: Sequence[Row],
    sides: tuple[Side, Side],
    criteria: Sequence[Row],
    deadline: float,
) -> list[str]:
    """Run both sides over the items, and print their comparison; return what is missing."""
    eval_id = _created(mill, title, criteria)
    runs = [_submitted(mill, eval_id, side, items) for side in sides]
    console.print(f"\n[bold]{title}[/]: {len(items)} docstrings, {len(criteria)} graders, two runs")
    done = [_ended(console, mill, run, side.name, deadline) for run, side in zip(runs, sides, strict=True)]
    faults = [fault for run in done for fault in faults_of(run, len(items))]
    if not faults:
        report = (mill.system.folder.path / "demo" / f"{title.replace(' ', '-')}.html").absolute()
        report.parent.mkdir(exist_ok=True)
        _print_comparison(mill, [run.id for run in done], report)
    return faults


def _created(mill: Deployment, title: str, criteria: Sequence[Row]) -> str:
    properties = {name: {"type": "string"} for name in ("name", "kind", "details", "summary")}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    config: Any = {"type": "custom", "item_schema": schema, "include_sample_schema": True}
    given: Any = list(criteria)
    made = mill.client.evals.create(name=title, data_source_config=config, testing_criteria=given, metadata=MARK)
    return made.id


def _submitted(mill: Deployment, eval_id: str, side: Side, items: Sequence[Row]) -> RunRetrieveResponse:
    source: Any = {
        "type": "completions",
        "model": side.model,
        "source": {"type": "file_content", "content": [{"item": item} for item in items]},
        "input_messages": {"type": "template", "template": list(side.messages)},
        "sampling_params": {"temperature": 0, "max_completion_tokens": _MAX_TOKENS},
    }
    made = mill.client.evals.runs.create(eval_id, name=side.name, data_source=source)
    return mill.client.evals.runs.retrieve(made.id, eval_id=eval_id)


def _ended(
    console: Console, mill: Deployment, run: RunRetrieveResponse, name: str, deadline: float
) -> RunRetrieveResponse:
    """Return a run when it has ended; print what changes. Raises CliError when it does not end in time."""
    shown = ""
    while True:
        run = mill.client.evals.runs.retrieve(run.id, eval_id=run.eval_id)
        line = f"{name}: {run.status}, {run.result_counts.total} graded"
        if line != shown:
            console.print(line)
            shown = line
        if run.status not in LIVE_RUN:
            return run
        mill.system.check()
        if time.monotonic() > deadline:
            raise CliError(f"{name} did not end in time; look at {mill.system.folder.logs}")
        threading.Event().wait(_LOOK_SECONDS)


def faults_of(run: RunRetrieveResponse, count: int) -> list[str]:
    """Return what is wrong with a run that has ended, in words."""
    counts = run.result_counts
    if run.status != "completed":
        return [f"{run.name} {run.status}: {run.error.message}"]
    wrong = [] if counts.total == count else [f"{run.name}: {counts.total} of {count} rows are graded"]
    if counts.errored:
        wrong.append(f"{run.name}: {counts.errored} rows have an error")
    return wrong


def _print_comparison(mill: Deployment, runs: Sequence[str], report: Path) -> None:
    """Run `nightmill evals compare`, as a user does, which also prints the path of the report."""
    words = ["evals", "compare", *runs, "--slice-by", "item.kind", "--report", str(report)]
    own: Mapping[str, str] = {"NIGHTMILL_API_KEY": mill.system.api_key, "COLUMNS": str(demos.WIDTH)}
    command = [sys.executable, "-m", "cli", *words, "--url", mill.system.url]
    done = subprocess.run(command, check=False, env={**os.environ, **own})
    if done.returncode:
        raise CliError("the runs could not be compared")


if __name__ == "__main__":
    sys.exit(main())
