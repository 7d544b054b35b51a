"""Measure runs of evals: items/s of each grader, and whole runs with a stub as the model.

    python -m bench evals [--items 5000,50000] [--graded 2000] [--processes 20]

Graders: the items are docstrings of Python with other docstrings as answers, in this process, one after another.
Judges and vectors are answered beforehand: the figure is the cost of the grader itself. The `python` grader runs in the
sandbox of workers, beside a process of Python for each item.

Runs: the deployment is that of `bench pipeline --engine stub`. A file of items is uploaded, the model is asked about
each, two criteria grade it, and all output items are read in pages. Every item is counted once. Memory is the peak of
the largest process of each line of the Procfile during that run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.deployment import MB, Deployment, make_folder
from bench.pipeline import MODEL, deployment
from examples.corpus import docstrings
from jobs.evals.graders import Grader, parse_grader
from jobs.evals.graders.base import ModelAnswer, Ports
from jobs.evals.grading import grade
from jobs.evals.samples import sample_from_text
from workers.evals.python_grader import PythonSandbox

_LIVE = ("queued", "in_progress")
_LOOK_SECONDS = 0.5
_PAGE = 100
_INPUT, _REFERENCE = "{{ sample.output_text }}", "{{ item.answer }}"
_TEXTS = {"input": _INPUT, "reference": _REFERENCE}
_JUDGE = {"model": "judge", "input": [{"role": "user", "content": f"Grade: {_INPUT}"}]}
_SOURCE = "def grade(sample, item):\n    return float(len(sample['output_text']) > len(item['answer']))\n"
_METRICS = ("fuzzy_match", "bleu", "gleu", "chrf", "rouge_1", "rouge_l", "cosine")
_DIMENSIONS = 384

Row = dict[str, Any]
Case = tuple[Row, Row]


def main() -> None:
    options = _options()
    console = Console(width=160)
    console.print(_graders(cases(options.graded), options.processes))
    sizes = [int(word) for word in options.items.split(",") if word]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, deployment(Path(folder), "stub") as inline:
        for queue in ("cpu.plan", "cpu.evaluate", "gpu.generate"):
            inline.wait_for(queue)
        table = Table("items", "whole run s", "items/s", "output items s", "peak MB", title="runs", box=box.SIMPLE)
        peaks = [_measure(inline, Path(folder), size, table) for size in sizes]
        console.print(table)
        for name in peaks[0] if peaks else ():
            console.print(
                f"{name}: peak memory at {sizes[-1]:,} / {sizes[0]:,} items: {peaks[-1][name] / peaks[0][name]:.2f}"
            )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure graders and runs of evals")
    parser.add_argument("--items", default="5000,50000", help="sizes of the runs, comma-separated")
    parser.add_argument("--graded", type=int, default=2000, help="items for each grader")
    parser.add_argument("--processes", type=int, default=20, help="items with a process of Python each")
    parser.add_argument("--folder", type=make_folder, help="where the data goes; default: the temporary folder")
    return parser.parse_args()


# ── graders ──


def cases(count: int) -> list[Case]:
    """Return items and samples: docstrings as answers to other docstrings."""
    texts = [docstring.text for docstring in docstrings(200)]
    pairs = zip(cycle(texts), cycle(texts[1:]), strict=False)
    return [({"answer": reference}, sample_from_text(text)) for text, reference in islice(pairs, count)]


def definitions() -> list[Row]:
    """Return a grader of each kind that this process can run alone."""
    return [
        {"type": "string_check", "operation": "ilike", **_TEXTS},
        {"type": "exact_match", "ignore_case": True, "ignore_whitespace": True, **_TEXTS},
        {"type": "regex", "input": _INPUT, "pattern": r"\breturns?\b"},
        *({"type": "text_similarity", "evaluation_metric": metric, **_TEXTS} for metric in _METRICS),
        {"type": "label_model", "labels": ["good", "bad"], "passing_labels": ["good"], **_JUDGE},
        {"type": "score_model", **_JUDGE},
    ]


def _graders(items: Sequence[Case], processes: int) -> Table:
    table = Table("grader", "items/s", title=f"graders, {len(items):,} items each", box=box.SIMPLE)
    for definition in definitions():
        grader = parse_grader({"name": "g", **definition})
        ports, answers = Ports(embedding_model="vectors"), answers_of(definition)
        rate = _rate(partial(_graded, grader, answers, ports), items)
        table.add_row(definition.get("evaluation_metric") or definition["type"], f"{rate:,.0f}")
    sandbox = PythonSandbox()
    try:
        grader = parse_grader({"name": "g", "type": "python", "source": _SOURCE})
        ports = Ports(run_python=partial(sandbox.run, "bench"))
        _graded(grader, {}, ports, items[0])  # starts the template
        forked = _rate(partial(_graded, grader, {}, ports), items)
    finally:
        sandbox.close()
    started = _rate(_in_a_process, items[:processes])
    table.add_row("python", f"{forked:,.0f}")
    table.add_row(
        "a process of Python for each item", f"{started:,.0f} (the sandbox is {forked / started:.1f} times as fast)"
    )
    return table


def _rate(work: Callable[[Case], None], items: Sequence[Case]) -> float:
    began = time.perf_counter()
    for case in items:
        work(case)
    return len(items) / (time.perf_counter() - began)


def _graded(grader: Grader, answers: Mapping[str, ModelAnswer], ports: Ports, case: Case) -> None:
    result = grade(grader, *case, answers, ports)
    assert result.error is None, result.error


def answers_of(definition: Row) -> dict[str, ModelAnswer]:
    """Return what a grader's model answers to every item."""
    if definition.get("evaluation_metric") == "cosine":
        vectors = [{"embedding": [0.5] * _DIMENSIONS}, {"embedding": [0.25] * _DIMENSIONS}]
        return {"": ModelAnswer(200, {"data": vectors})}
    result = "good" if definition["type"] == "label_model" else 0.5
    text = json.dumps({"steps": [{"description": "compare", "conclusion": "equal"}], "result": result})
    return {"": ModelAnswer(200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})}


def _in_a_process(case: Case) -> None:
    """Grade one item in a process of its own, which has the same modules and no sandbox."""
    code = f"import json, sys\n{_SOURCE}\nitem, sample = json.load(sys.stdin)\nprint(grade(sample, item))"
    subprocess.run([sys.executable, "-c", code], input=json.dumps(case).encode(), check=True, capture_output=True)


# ── runs ──


def _measure(inline: Deployment, folder: Path, size: int, table: Table) -> dict[str, int]:
    """Run `size` items to their end, and add a row; return the peak memory by line of the Procfile."""
    path = folder / f"{size}.jsonl"
    with path.open("w") as out:
        out.writelines(json.dumps({"item": item_of(n)}) + "\n" for n in range(size))
    with path.open("rb") as handle:
        file_id = inline.client.files.create(file=handle, purpose="evals").id
    inline.forget_peaks()
    began = time.monotonic()
    eval_id, run_id = _ended(inline, file_id, size)
    whole = time.monotonic() - began
    numbers = sorted(_numbers(inline, eval_id, run_id))
    read = time.monotonic() - began - whole
    assert numbers == list(range(size)), f"{len(numbers)} output items of {size}"
    peaks = inline.peaks()
    shown = " ".join(f"{name} {peak / MB:.0f}" for name, peak in peaks.items())
    table.add_row(f"{size:,}", f"{whole:.1f}", f"{size / whole:,.0f}", f"{read:.1f}", shown)
    return peaks


def item_of(number: int) -> Row:
    return {"question": f"Question {number}: {'what is the weather like today? ' * 4}", "answer": "echo"}


def _ended(inline: Deployment, file_id: str, size: int) -> tuple[str, str]:
    """Run the items of a file to the end; return the ids of the eval and the run."""
    config: Any = {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True}
    criteria: Any = [
        {"type": "string_check", "name": "contains", "operation": "ilike", **_TEXTS},
        {"type": "text_similarity", "name": "near", "evaluation_metric": "fuzzy_match", **_TEXTS},
    ]
    eval_id = inline.client.evals.create(data_source_config=config, testing_criteria=criteria).id
    source: Any = {
        "type": "completions",
        "model": MODEL,
        "source": {"type": "file_id", "id": file_id},
        "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{ item.question }}"}]},
    }
    run_id = inline.client.evals.runs.create(eval_id, data_source=source).id
    while (run := inline.client.evals.runs.retrieve(run_id, eval_id=eval_id)).status in _LIVE:
        inline.system.check()
        threading.Event().wait(_LOOK_SECONDS)
    counts = run.result_counts
    assert (run.status, counts.total, counts.errored) == ("completed", size, 0), run
    return eval_id, run_id


def _numbers(inline: Deployment, eval_id: str, run_id: str) -> Iterator[int]:
    for item in inline.client.evals.runs.output_items.list(run_id, eval_id=eval_id, limit=_PAGE):
        yield item.datasource_item_id


if __name__ == "__main__":
    main()
