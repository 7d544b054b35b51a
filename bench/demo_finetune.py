"""Fine-tune the packaged model on this machine, and ask the result by its name: `make demo-finetune`.

    up ─▶ rows ─▶ job, watched ─▶ curve ─▶ plain trl, the same steps ─▶ a chat ─▶ two batches ─▶ shares of the format

The rows are docstrings of this machine's Python with answers of three lines. No prompt asks for that form. Twenty
docstrings are held out; a batch asks the tuned model about them, and another one the base. Exit code 1 unless at least
16 answers of the tuned model have the form, and at most 2 of the base.
"""

import argparse
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from openai.types.fine_tuning import FineTuningJobEvent
from rich import box
from rich.console import Console
from rich.table import Table

from bench import demos, tuning
from bench.deployment import Deployment
from bench.tuning import BASE, Trained
from cli.commands.finetune import drawn
from cli.demo.batch import DemoBatch, answer, submit
from cli.demo.corpus import Docstring
from cli.errors import CliError
from cli.terminal import cell, escaped

_LINES = ("web", "dispatcher", "cpu", "gpu", "finetune")
HELD_OUT = 20
MIN_TUNED_SHARE, MAX_BASE_SHARE = 0.8, 0.1  # of the answers that have the trained form
_MAX_TOKENS = 96
_SHOWN = 4  # held-out prompts
_LOOK_SECONDS = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    lines, held_out = tuning.rows(options.rows, HELD_OUT)

    def play(console: Console, mill: Deployment, began: float) -> list[str]:
        mill.wait_for("gpu.generate", options.patience)
        console.print(f"{BASE} is loaded after {time.monotonic() - began:.0f} s")
        name = _train(console, mill, lines, began, compare=options.compare)
        return _ask(console, mill, name, held_out, time.monotonic() + options.patience)

    return demos.run(options.data_dir, _LINES, play)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.demo_finetune", description="fine-tune the packaged model")
    parser.add_argument("--data-dir", type=Path, default=Path(".nightmill-demo"))
    parser.add_argument("--rows", type=int, default=160, help="how many examples to train on, 4 for each step")
    parser.add_argument("--no-compare", dest="compare", action="store_false", help="leave out plain trl")
    parser.add_argument("--patience", type=float, default=3600.0, help="for the engine, then for the batches")
    return parser.parse_args(arguments)


def _train(console: Console, mill: Deployment, lines: Sequence[tuning.Row], began: float, *, compare: bool) -> str:
    """Train, beside it plain trl, and show both; return the name of the model."""
    console.print(f"uploaded {len(lines)} examples, docstrings of this Python; created a fine-tuning job")

    def show(event: FineTuningJobEvent) -> None:
        console.print(f"{time.monotonic() - began:5.0f} s  {escaped(event.message)}", soft_wrap=True, highlight=False)

    measured = tuning.measure(mill, lines, "entries", show)
    for line in drawn(tuning.metrics(mill, measured.job.id)):
        console.print(line, highlight=False)
    runs = {"Nightmill": measured.trained}
    if compare:
        console.print(f"training the same {measured.trained.steps} steps with plain trl in {measured.dtype}")
        runs["plain trl"] = tuning.plain(mill, lines, measured.dtype)
    console.print(stages(runs))
    assert measured.job.fine_tuned_model
    return measured.job.fine_tuned_model


def stages(runs: Mapping[str, Trained]) -> Table:
    """Return a table of the seconds of each phase."""
    table = Table("seconds of each stage", *runs, box=box.SIMPLE)
    for title, name in (
        ("examine the examples, queue", "examining"),
        ("start, load, tokenise, choose a dtype, first step", "starting"),
        ("the other steps, with checkpoints", "training"),
        ("last checkpoint, probes, result", "ending"),
        ("together", "total"),
    ):
        table.add_row(title, *(f"{getattr(run, name):.0f}" for run in runs.values()))
    table.add_row("steps a second", *(f"{run.steps_per_second:.2f}" for run in runs.values()))
    table.add_row("loss of the first and the last step", *(_losses(run) for run in runs.values()))
    table.add_row("largest process, MB", *(f"{run.peak / 1e6:.0f}" for run in runs.values()))
    return table


def _losses(run: Trained) -> str:
    first, last = run.losses
    return f"{first:.2f} {last:.2f}"


def _ask(console: Console, mill: Deployment, name: str, held_out: Sequence[Docstring], deadline: float) -> list[str]:
    """Ask the tuned model in a chat and in a batch, and the base in another; return what is missing."""
    chat = mill.client.chat.completions.create(
        model=name,
        messages=tuning.question(held_out[0]),
        max_tokens=_MAX_TOKENS,
        temperature=0,  # type: ignore[list-item]
    )
    console.print(f"{escaped(chat.model)} answers in a chat:")
    for line in (chat.choices[0].message.content or "").splitlines():
        console.print(f"  {escaped(line)}")
    folder = mill.system.folder.path / "demo"
    folder.mkdir(exist_ok=True)
    batches = [
        submit(mill.client, title, "/v1/chat/completions", _requests(model, held_out), folder)
        for title, model in (("tuned", name), ("base", BASE))
    ]
    _await(mill, batches, deadline)
    answers = [_answers(batch, len(held_out)) for batch in batches]
    table = Table("held-out prompt", name, BASE, box=box.SIMPLE)
    for docstring, *texts in list(zip(held_out, *answers, strict=True))[:_SHOWN]:
        table.add_row(cell(docstring.name), *map(cell, texts))
    console.print(table)
    shares = [sum(map(tuning.has_format, texts)) / len(texts) for texts in answers]
    named = sum(tuning.names_object(text, docstring) for text, docstring in zip(answers[0], held_out, strict=True))
    console.print(f"answers in the trained form: {shares[0]:.0%} of the tuned model, {shares[1]:.0%} of the base")
    console.print(f"answers of the tuned model that name what was asked about: {named} of {len(held_out)}")
    return [*([] if chat.model == name else [f"the chat was answered by {chat.model}"]), *faults(*shares)]


def faults(tuned: float, base: float) -> list[str]:
    """Return what is wrong with the shares of answers that have the trained form, in words."""
    wrong = []
    if tuned < MIN_TUNED_SHARE:
        share = f"{MIN_TUNED_SHARE:.0%}"
        wrong.append(f"{tuned:.0%} of the tuned model's answers have the trained form, not {share} or more")
    if base > MAX_BASE_SHARE:
        wrong.append(f"{base:.0%} of the base's answers have the trained form, not {MAX_BASE_SHARE:.0%} or less")
    return wrong


def _requests(model: str, held_out: Sequence[Docstring]) -> list[tuning.Row]:
    bodies = [
        {"model": model, "messages": tuning.question(docstring), "max_tokens": _MAX_TOKENS, "temperature": 0}
        for docstring in held_out
    ]
    line = {"method": "POST", "url": "/v1/chat/completions"}
    return [{"custom_id": f"held-out-{n}", **line, "body": body} for n, body in enumerate(bodies)]


def _await(mill: Deployment, batches: Sequence[DemoBatch], deadline: float) -> None:
    """Wait until all batches have ended, and download them. Raises CliError when they do not end in time."""
    while not all(batch.ended for batch in batches):
        threading.Event().wait(_LOOK_SECONDS)
        for batch in batches:
            batch.look(mill.client)
        mill.system.check()
        if time.monotonic() > deadline:
            raise CliError(f"the batches did not end in time; look at {mill.system.folder.logs}")
    for batch in batches:
        batch.download(mill.client)


def _answers(batch: DemoBatch, count: int) -> list[str]:
    """Return the texts of a batch in the order of its lines; empty ones for lines that failed."""
    bodies = batch.bodies()
    return [answer(bodies.get(f"held-out-{n}", {})) for n in range(count)]


if __name__ == "__main__":
    sys.exit(main())
