"""`nightmill embed-eval`: embedding models side by side, on texts and judgements of one's own.

corpus ──▶ vectors, block by block ──┐
queries ─▶ vectors, timed one by one ┴─▶ the best k of each query ──▶ recall, nDCG, MRR ──▶ a table
judgements ──────────────────────────────────────────────────────────────┘
"""

import io
import json
import socket
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from cli.client.server import Server, connect
from cli.errors import CliError
from cli.options import ApiKey, AsJson, DataDir, Url
from cli.output_files import require_writable, whole
from cli.terminal import cell, say, text_output

if TYPE_CHECKING:
    from cli.commands.embed_evaluation import Embedder
    from cli.commands.embed_inputs import Inputs, Text

_AT = 10  # the depth of nDCG and MRR
_BLOCK = 2048  # texts whose vectors are in memory at once
_WIDE = 160  # columns without a terminal
_HOUR = 3600


def embed_eval(
    corpus: Annotated[
        Path, typer.Argument(metavar="CORPUS", help="Texts to search, as JSON Lines with id, text and language.")
    ],
    queries: Annotated[Path, typer.Argument(metavar="QUERIES", help="Queries, in the same form.")],
    judgements: Annotated[
        Path, typer.Argument(metavar="QRELS", help="Which text answers which query, as a table of TREC or BEIR.")
    ],
    model: Annotated[list[str], typer.Option("--model", "-m", help="A model to compare; may be repeated.")],
    depth: Annotated[
        list[int] | None, typer.Option("--k", min=1, max=1000, help="Measure recall at this depth; may be repeated.")
    ] = None,
    hourly_cost: Annotated[
        float | None, typer.Option(min=0, help="The price of an hour of the machine, to compute the price of tokens.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="How many requests to send at once.")] = 4,
    as_json: AsJson = False,
    output: Annotated[Path | None, typer.Option(help="Write to this file instead of standard output.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Compare embedding models on your own texts, queries and judgements."""
    from cli.commands import embed_inputs

    if output:
        require_writable(output)
    given = embed_inputs.read(corpus, queries, judgements)
    depths = sorted(set(depth or (10, 100)))
    with connect(url, api_key, data_dir) as server:
        cards = {name: server.get(f"/models/{quote(name, safe='/')}") for name in dict.fromkeys(model)}
        results = []
        for name, card in cards.items():
            say(f"{name}: {len(given.queries)} queries, {len(given.indexes)} texts", err=True)
            embedder = _embedder(server, name, concurrency)
            result = _judged(embedder, card, given, depths, hourly_cost)
            results.append((result, resident_bytes(server.url, name, data_dir)))
    _write(given, [_with_memory(result, size) for result, size in results], output, as_json=as_json)


def _embedder(server: Server, model: str, concurrency: int) -> "Embedder":
    from cli.commands.embed_evaluation import Embedder

    return Embedder(server, model, concurrency)


def _with_memory(result: "Judged", size: int | None) -> "Judged":
    from dataclasses import replace

    return replace(result, memory_bytes=size)


def _judged(
    embedder: "Embedder", card: Mapping[str, Any], given: "Inputs", depths: Sequence[int], hourly: float | None
) -> "Judged":
    import numpy as np

    from cli.commands.embed_evaluation import TYPE
    from cli.commands.embed_inputs import by_language

    ranked, seconds = _ranked(embedder, given, max(*depths, _AT))
    p50, p95 = np.percentile(seconds, (50, 95)) * 1000
    cost, queries = embedder.corpus, embedder.queries
    cut = None if cost.truncated is None or queries.truncated is None else cost.truncated + queries.truncated
    pace = cost.tokens / cost.seconds if cost.tokens else None
    return Judged(
        model=embedder.model,
        scores=scores(ranked, given, list(ranked), depths),
        by_language={
            language: scores(ranked, given, ids, depths) for language, ids in by_language(given.queries).items()
        },
        truncated_share=None if cut is None else cut / (cost.texts + queries.texts),
        dimensions=embedder.dimensions,
        max_tokens=card.get("max_model_len"),
        license=card.get("license"),
        training_data=card.get("training_data"),
        query_prompt=card.get("query_prompt"),
        passage_prompt=card.get("passage_prompt"),
        prompts_used=TYPE in embedder.taken,
        latency_p50_ms=round(float(p50), 3),
        latency_p95_ms=round(float(p95), 3),
        tokens_per_second=pace and round(pace, 1),
        texts_per_second=round(cost.texts / cost.seconds, 1),
        memory_bytes=None,
        cost_per_million_tokens=_price(card.get("cost_per_million_tokens"), pace, hourly),
    )


def _price(stated: float | None, pace: float | None, hourly: float | None) -> float | None:
    """Return the price of a million tokens: the server's, else the cost of the machine's time."""
    if stated is not None or hourly is None or not pace:
        return stated
    return hourly / (pace * _HOUR) * 1_000_000


def _ranked(embedder: "Embedder", given: "Inputs", depth: int) -> tuple[dict[str, list[str]], list[float]]:
    """Return the ids of the nearest texts of each query, best first, and the seconds to embed each query."""
    from cli.commands.embed_evaluation import Nearest
    from cli.commands.embed_inputs import texts

    vectors, seconds = embedder.timed([query.text for query in given.queries])
    nearest = Nearest(vectors, depth)
    for block in _blocks(texts(given.corpus)):
        nearest.add(embedder.block([text.text for text in block]))
    names = list(given.indexes)
    if embedder.corpus.texts != len(names):
        raise CliError(f"{given.corpus} has changed while it was read")
    indexes = zip(given.queries, nearest.indexes(), strict=True)
    return {query.id: [names[index] for index in row] for query, row in indexes}, seconds


def _blocks(many: "Iterator[Text]") -> "Iterable[list[Text]]":
    while block := list(islice(many, _BLOCK)):
        yield block


def scores(
    ranked: Mapping[str, Sequence[str]], given: "Inputs", queries: Sequence[str], depths: Sequence[int]
) -> "Scores":
    """Return the mean scores over the given queries."""
    from jobs.retrieval.metrics import ndcg, recall, reciprocal_rank

    judged = [(ranked[query], given.judgements[query]) for query in queries]
    means = {f"recall@{k}": statistics.fmean(recall(*pair, k) for pair in judged) for k in depths}
    means[f"nDCG@{_AT}"] = statistics.fmean(ndcg(*pair, _AT) for pair in judged)
    means[f"MRR@{_AT}"] = statistics.fmean(reciprocal_rank(*pair, _AT) for pair in judged)
    return means


def _write(given: "Inputs", results: "list[Judged]", output: Path | None, *, as_json: bool) -> None:

    counts = {"texts": len(given.indexes), "queries": len(given.queries), "queries_without_judgement": given.unjudged}
    if as_json:
        text = json.dumps({**counts, "models": [result.as_dict() for result in results]}) + "\n"
    else:
        left = f", {given.unjudged} without judgement left out" if given.unjudged else ""
        title = f"{len(given.indexes)} texts, {len(given.queries)} queries{left}"
        text = table(title, results, None if sys.stdout.isatty() and not output else _WIDE)
    if output is None:
        text_output().write(text)
        return
    try:
        with whole(output) as out:
            out.write(text.encode())
    except OSError as error:
        raise CliError(f"cannot write {output}: {error.strerror}") from error


def resident_bytes(url: str, model: str, data_dir: Path | None) -> int | None:
    """Return the memory of one worker with all its models; None where this host cannot see it."""
    from cli.up.effective import opened, running
    from cli.up.folder import DataFolder
    from jobs.fleet import workers
    from jobs.fleet.models_file import EngineKind, ModelsFileError, Registry
    from jobs.platform import processes

    config = running(data_dir)
    if DataFolder(config.data_dir).live_run().get("url") != url:
        return None  # another machine's deployment
    try:
        known = Registry.load(config).resolve(model)
        if known is None or known.engine is not EngineKind.EMBED:
            return None  # the model is in another server's memory
        with opened(data_dir) as db, db.read() as session:
            recorded = [
                (worker.pid, worker.started)
                for worker in workers.alive(session, known.queue)
                if known.name in worker.models and worker.host == socket.gethostname()
            ]
    except (CliError, ModelsFileError):
        return None
    alive = [pid for pid, started in recorded if processes.alive(pid, started)]
    return next((size for size in map(processes.resident_bytes, alive) if size), None)


Scores = dict[str, float]


@dataclass(frozen=True, slots=True)
class Judged:
    """The figures of one model. None: not stated or not measured."""

    model: str
    scores: Scores
    by_language: dict[str, Scores]
    truncated_share: float | None
    dimensions: int
    max_tokens: int | None
    license: str | None
    training_data: list[str] | None
    query_prompt: str | None
    passage_prompt: str | None
    prompts_used: bool
    latency_p50_ms: float
    latency_p95_ms: float
    tokens_per_second: float | None
    texts_per_second: float
    memory_bytes: int | None
    cost_per_million_tokens: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


_ROWS: tuple[tuple[str, Callable[[Judged], str]], ...] = (
    ("truncated texts", lambda row: "not told" if row.truncated_share is None else f"{row.truncated_share:.1%}"),
    ("dimensions", lambda row: str(row.dimensions)),
    ("max tokens", lambda row: _or(row.max_tokens, "not stated")),
    ("licence", lambda row: _or(row.license, "not stated")),
    ("training data", lambda row: "not stated" if row.training_data is None else _short(row.training_data)),
    ("query prompt", lambda row: _prompt(row.query_prompt, used=row.prompts_used)),
    ("passage prompt", lambda row: _prompt(row.passage_prompt, used=row.prompts_used)),
    ("ms a query, p50", lambda row: f"{row.latency_p50_ms:.1f}"),
    ("ms a query, p95", lambda row: f"{row.latency_p95_ms:.1f}"),
    ("texts/s", lambda row: f"{row.texts_per_second:.1f}"),
    ("tokens/s", lambda row: "not told" if row.tokens_per_second is None else f"{row.tokens_per_second:.0f}"),
    ("memory of its worker", lambda row: "not measured" if not row.memory_bytes else f"{row.memory_bytes >> 20} MiB"),
    ("cost per 1M tokens", lambda row: _or(_rounded(row.cost_per_million_tokens), "-")),
)  # fmt: skip


def table(title: str, results: Sequence[Judged], width: int | None) -> str:
    """Return a table with one column a model."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, box=box.SIMPLE, title_justify="left")
    for name in ("", *(result.model for result in results)):
        shown.add_column(cell(name), overflow="fold")
    for name in results[0].scores:
        shown.add_row(name, *(f"{result.scores[name]:.4f}" for result in results))
    several = len(results[0].by_language) > 1  # a single language equals the total
    for language in results[0].by_language if several else ():
        for name in results[0].scores:
            shown.add_row(
                cell(f"{name}, {language}"), *(f"{result.by_language[language][name]:.4f}" for result in results)
            )
    for name, value in _ROWS:
        shown.add_row(name, *(cell(value(result)) for result in results))
    out = io.StringIO()
    Console(file=out, width=width).print(shown)
    return out.getvalue()


def _rounded(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _or(value: object | None, otherwise: str) -> str:
    return otherwise if value is None else str(value)


def _prompt(prompt: str | None, *, used: bool) -> str:
    return "not taken by its server" if not used else _or(prompt and repr(prompt), "none")


def _short(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more or "none"
