"""Measure how documents come into a vector store through the SDK, against LlamaIndex's IngestionPipeline.

    python -m bench ingest [--documents 500] [--rounds 1] [--chosen]
    python -m bench ingest --flat [--sizes 500,5000]

Files, model, niceness, tokens a chunk and overlap are equal. The deployment uploads, parses, embeds and stores durably
in LanceDB. LlamaIndex reads from disk into a store in memory, in one process that has loaded its model
(`bench/llama.py`; left out where it cannot be installed). Stages are measured separately: LlamaIndex's as parts of its
run, the deployment's in a process of its own (`bench/stages.py`), since a deployment runs them at the same time. The
deployment does not embed a text again that is there already. Both compute with torch, the deployment in the type that
`auto` selects. With `--chosen` the deployment first measures and chooses a runtime, for which it waits until the
machine is quiet.

    again            the same call over the same files
    uploaded anew    the same documents as new files; LlamaIndex reads the disk each time and has no such case

`--flat`: the peak memory of each process with few and with many small documents.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from bench import documents, rival
from bench.deployment import MB, Deployment, make_folder
from bench.papers import Paper
from bench.vector_store import OVERLAP, TOKENS, BenchStore, embedding_deployment, engine_environment
from cli.up.procfile import CODE
from workers.engines.model_folders import MINILM, materialise

_PACKAGES = (
    "llama-index-core>=0.14", "llama-index-embeddings-huggingface>=0.6", "llama-index-readers-file>=0.5",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ours:
    """Seconds of the deployment; `whole` includes the upload, `cpu` all processes. Peaks are bytes, by line."""

    upload: float
    whole: float
    cpu: float
    again: float
    anew: float
    chunks: int
    failed: int
    peaks: dict[str, int]


@dataclass(frozen=True, slots=True)
class Round:
    """One round, in seconds as `bench/stages.py` and `bench/llama.py` print them; `theirs` may be empty."""

    ours: Ours
    stages: dict[str, float]
    theirs: dict[str, float]


def main() -> None:
    options = _options()
    console = Console(width=120)
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as name,
        embedding_deployment(Path(name), chosen=options.chosen) as inline,
    ):
        if options.flat:
            _flat(console, inline, [int(word) for word in options.sizes.split(",")])
        else:
            _compare(console, inline, Path(name), options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure ingestion against LlamaIndex")
    parser.add_argument("--documents", type=int, default=500, help="or as many as there are")
    parser.add_argument("--rounds", type=int, default=1, help="who goes first changes from one to the next")
    parser.add_argument("--chosen", action="store_true", help="embed with the runtime chosen here, not with torch")
    parser.add_argument("--flat", action="store_true", help="measure memory instead")
    parser.add_argument("--sizes", default="500,5000", help="small documents of --flat, comma-separated")
    parser.add_argument("--folder", type=make_folder, help="where the data goes; default: the temporary folder")
    return parser.parse_args()


def _compare(console: Console, inline: Deployment, folder: Path, options: argparse.Namespace) -> None:
    papers = documents.gathered(options.documents)
    files = documents.written(papers, folder / "files")
    try:
        python = rival.install(folder / "rival", _PACKAGES)
    except rival.NotToBeHad as error:
        console.print(f"LlamaIndex is not to be had here: {error}")
        python = None
    settings = engine_environment(inline, chosen=options.chosen)
    rounds = [_round(inline, papers, files, python, settings, n) for n in range(options.rounds)]
    _show(console, papers, rounds)


def _round(
    inline: Deployment, papers: Sequence[Paper], files: Path, python: Path | None, settings: Mapping[str, str], n: int
) -> Round:
    theirs = _theirs(python, files) if n % 2 else None
    ours = _ours(inline, papers)
    stages = rival.run(["-m", "bench.stages", files, str(TOKENS), str(OVERLAP)], environment=settings)
    return Round(ours, stages, _theirs(python, files) if theirs is None else theirs)


def _ours(inline: Deployment, papers: Sequence[Paper]) -> Ours:
    store = BenchStore(inline)
    inline.forget_peaks()
    before, began = sum(inline.cpu().values()), time.monotonic()
    ids = store.upload(papers)
    upload = time.monotonic() - began
    first = store.ingest(ids)
    cpu, peaks, chunks = sum(inline.cpu().values()) - before, inline.peaks(), store.chunks()
    again = store.ingest(ids)
    began = time.monotonic()
    store.ingest(store.upload(papers))
    anew = time.monotonic() - began
    store.remove()
    return Ours(upload, upload + first.seconds, cpu, again.seconds, anew, chunks, first.failed, peaks)


def _theirs(python: Path | None, files: Path) -> dict[str, float]:
    if python is None:
        return {}
    script = CODE / "bench" / "llama.py"
    words: list[str | Path] = ["-P", script, files, materialise(MINILM, Path()), str(TOKENS), str(OVERLAP)]
    figures: dict[str, float] = rival.run(words, python=python)  # -P: not this checkout's modules
    return figures


def _show(console: Console, papers: Sequence[Paper], rounds: Sequence[Round]) -> None:
    size = sum(len(paper.data) for paper in papers) / MB
    title = f"{len(papers)} documents, {size:.1f} MB, chunks of {TOKENS} tokens, overlap {OVERLAP}"
    table = Table(f"median of {len(rounds)}", "ours", "LlamaIndex", "ratio", title=title, box=box.SIMPLE)
    figures = [dict(_figures(one, len(papers), size)) for one in rounds]
    for name in figures[0]:
        table.add_row(name, *_row([one[name] for one in figures]))
    console.print(table)
    last = rounds[-1]
    first = last.ours.whole - last.ours.upload
    console.print(f"again: {first / last.ours.again:.0f} times as fast; uploading took {last.ours.upload:.1f} s")
    console.print(f"{last.ours.failed} documents were refused; {last.stages['sampled']:.0f} chunks were embedded alone")
    peaks = ", ".join(f"{name} {last.ours.peaks[name] / MB:.0f}" for name in ("cpu", "embed"))
    other = f"; LlamaIndex {last.theirs['peak'] / MB:.0f}" if last.theirs else ""
    console.print(f"peak MB of the largest process: {peaks}{other}")


def _row(pairs: Sequence[tuple[float, float | None]]) -> Iterator[str]:
    yield _shown(statistics.median(ours for ours, _ in pairs))
    both = [(ours, theirs) for ours, theirs in pairs if theirs]
    yield _shown(statistics.median(theirs for _, theirs in both)) if both else "-"
    yield f"{statistics.median(ours / theirs for ours, theirs in both):.3f}" if both else "-"


def _shown(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


def _figures(one: Round, count: int, size: float) -> Iterator[tuple[str, tuple[float, float | None]]]:
    """Return each figure of both sides by name. Higher rates are better, and lower seconds."""
    ours, theirs, stages = one.ours, one.theirs, one.stages
    whole, chunks = theirs.get("whole"), theirs.get("chunks", 0)
    for unit, mine, other in (("documents", count, count), ("MB", size, size), ("chunks", ours.chunks, chunks)):
        yield f"whole, {unit}/s", (mine / ours.whole, whole and other / whole)
    for stage in ("parse", "embed", "index"):
        seconds = theirs.get(stage)
        yield f"{stage} alone, chunks/s", (stages["chunks"] / stages[stage], seconds and chunks / seconds)
    yield "chunks", (ours.chunks, theirs.get("chunks"))
    yield "whole, s", (ours.whole, whole)
    yield "its CPU, s", (ours.cpu, theirs.get("cpu"))
    yield "again, s", (ours.again, theirs.get("again"))
    yield "uploaded anew, s", (ours.anew, None)


def _flat(console: Console, inline: Deployment, sizes: Sequence[int]) -> None:
    table = Table("documents", "documents/s", "peak MB", title="small documents", box=box.SIMPLE)
    for size in sizes:
        store = BenchStore(inline)
        ids = store.upload(documents.small(size))
        inline.forget_peaks()
        done = store.ingest(ids)
        store.remove()
        peaks = " ".join(f"{name} {peak / MB:.0f}" for name, peak in inline.peaks().items() if name != "broker")
        table.add_row(f"{size:,}", f"{size / done.seconds:.1f}", peaks)
    console.print(table)


if __name__ == "__main__":
    main()
