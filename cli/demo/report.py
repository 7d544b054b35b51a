"""Print what the demo shows at the end: answers, neighbours, counts, and what to try next."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.demo.answers import DemoStore
from cli.demo.batch import DemoBatch, Vector, answer, nearest, vector
from cli.demo.corpus import QUESTIONS, TOPICS, Docstring
from cli.terminal import cell, escaped

_ROWS = 12
_NEIGHBOURS = 3


def show_answers(console: Console, docstrings: Sequence[Docstring], chats: DemoBatch, embeddings: DemoBatch) -> None:
    """Print some docstrings with the model's summary and the nearest topic of each."""
    answers = {name: answer(body) for name, body in chats.bodies().items()}
    vectors = _vectors(embeddings)
    topics = {name: vectors[f"topic-{name}"] for name in TOPICS}
    table = Table("function", "its docstring begins", "the model's summary", "nearest topic", box=box.SIMPLE)
    for n in range(0, len(answers), max(1, len(answers) // _ROWS)):
        [(_, topic)] = nearest(vectors[f"doc-{n}"], topics, 1)
        row = (docstrings[n].name, _clip(docstrings[n].text, 60), _clip(answers[f"chat-{n}"], 100), topic)
        table.add_row(*map(cell, row))
    console.print(table)


def show_neighbours(console: Console, docstrings: Sequence[Docstring], embeddings: DemoBatch) -> None:
    """Print for each question the docstrings that are nearest in meaning."""
    vectors = _vectors(embeddings)
    documents = {
        docstrings[int(name[4:])].name: embedding for name, embedding in vectors.items() if name.startswith("doc-")
    }
    table = Table("asked for", "nearest docstrings, by cosine of their embeddings", box=box.SIMPLE)
    for n, question in enumerate(QUESTIONS):
        best = nearest(vectors[f"question-{n}"], documents, _NEIGHBOURS)
        table.add_row(question, cell(" · ".join(f"{name} ({score:.2f})" for score, name in best)))
    console.print(table)


def show_counts(console: Console, batches: Sequence[DemoBatch], events: Mapping[str, str]) -> None:
    """Print one row for each batch."""
    table = Table("batch", "requests", "tokens in", "out", "seconds", "items/s", "tokens/s", "webhook", box=box.SIMPLE)
    for batch in batches:
        usage, seconds = batch.job["usage"], max(batch.seconds, 0.1)
        table.add_row(
            batch.title,
            str(batch.job["progress"]["completed"]),
            str(usage["input_tokens"]),
            str(usage["output_tokens"]),
            f"{seconds:.0f}",
            f"{len(batch.requests) / seconds:.0f}",
            f"{usage['total_tokens'] / seconds:.0f}",
            cell(f"{events[batch.id]}, verified"),
        )
    console.print(table)
    console.print("seconds: at work, without the time in which the engine was still loading", style="dim")


def show_library(console: Console, store: DemoStore) -> None:
    """Print the questions, the model's answers from the documents, and their sources."""
    size = sum(len(paper.data) for paper in store.papers)
    rate = f"{len(store.papers)} documents, {size // 1024} KiB, searchable after {store.seconds:.0f} s"
    table = Table("asked of the documents", "answer", "sources (* cited)", box=box.SIMPLE, title=rate)
    for entry in store.answers:
        names = [cell(f"{source.filename}{' *' if source.cited else ''}") for source in entry.sources]
        table.add_row(entry.question, cell(_clip(entry.text, 160)), Text("\n").join(names))
    console.print(table)


def show_next(console: Console, folder: Path, data_dir: Path, flower: int) -> None:
    """Print commands to try next."""
    command, data_dir, folder = _as_typed(Path(sys.argv[0])), _as_typed(data_dir), _as_typed(folder)
    lines = (
        f"inputs and outputs are in {folder}",
        f"{command} up --data-dir {data_dir}    (prints its URL and where the key is)",
        f"{command} console --data-dir {data_dir}    (prints a link that opens all of this in a browser)",
        f"{command} submit {folder / 'summaries.jsonl'} --data-dir {data_dir}    (in another terminal)",
        f"http://127.0.0.1:{flower}    Flower, while `nightmill up` runs (password: {data_dir / 'flower.password'})",
        f"{command} --help, and README.md",
    )
    console.print("\n[bold]What to try next[/]")
    for line in lines:
        console.print(f"  {escaped(line)}", soft_wrap=True, highlight=False)


def _as_typed(path: Path) -> Path:
    """Return a path relative to the current folder where it lies below that."""
    return path.absolute().relative_to(Path.cwd()) if path.absolute().is_relative_to(Path.cwd()) else path


def _vectors(batch: DemoBatch) -> dict[str, Vector]:
    return {name: vector(body) for name, body in batch.bodies().items()}


def _clip(text: str, length: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
