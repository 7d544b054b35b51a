"""Measure how well a search of a vector store finds what is relevant: by vectors, words, both, and re-ranked.

    python -m bench retrieval [--queries N] [--rfc FOLDER_OR_PACKAGE] [--python] [--small] [--vectors-url URL]
                              [--ranker FOLDER | --no-ranker]

Sets of collections with judgements (`bench/judged.py`) are brought into stores of a deployment, one store for each
collection. Every query is searched in each way. A chunk counts as its document, which counts once, at its best rank.
The queries are embedded before. The figures are means over the queries of a set:

    nDCG@10    the gain 1 / log2(1 + rank) of the relevant documents among the first ten, over the best possible gain
    MRR@10     1 / the rank of the first relevant document, 0 beyond the tenth

The command fails if the nDCG@10 of vectors alone is more than .02 above the default's in any of the sets.

ir-measures computes the figures where it can be installed, and must agree with the code here. The re-ranking model is
`--ranker`, or one that is trained here within minutes (`bench/ranker.py`), which is no measure of good models.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openai import OpenAI
from rich import box
from rich.console import Console
from rich.table import Table

from bench import judged, ranker, rival
from bench.deployment import Deployment, make_folder
from bench.judged import Collection
from bench.vector_store import BenchStore, embedding_deployment
from jobs.retrieval import metrics
from workers.engines.model_folders import MINILM

AT = 10
_CHUNKS = 50  # results of a search, at most; several may be chunks of one document
_DEFAULT, _VECTORS = "default", "vectors"
_MOST_LOST = 0.02  # by which nDCG of vectors alone may exceed the default's
WAYS: dict[str, dict[str, Any]] = {
    _VECTORS: {"embedding_weight": 1, "text_weight": 0},
    "BM25": {"embedding_weight": 0, "text_weight": 1},
    "hybrid, rrf k=1": {"embedding_weight": 1, "text_weight": 1, "fusion": "rrf", "rrf_k": 1},
    "hybrid, rrf k=60": {"embedding_weight": 1, "text_weight": 1, "fusion": "rrf", "rrf_k": 60},
    "hybrid, relative": {"embedding_weight": 1, "text_weight": 1, "fusion": "relative"},
}
RANKER = "bench-ranker"
_RE_RANKED = {"default, re-ranked": 50, "default, re-ranked, 20 deep": 20}  # chunks
_MODELS_FILE = """
models:
  {minilm}: {{source: {{packaged: {minilm}}}, engine: embed}}
  {ranker}: {{source: {{path: {path}}}, engine: rerank, engine_args: {{max_length: {longest}}}}}
"""
_LONGEST = 320  # tokens of a query and a chunk
_IR_MEASURES = f"""
import json, sys
from ir_measures import RR, Qrel, ScoredDoc, calc_aggregate, nDCG
given = json.load(sys.stdin)
qrels = [Qrel(query, document, 1) for query, document in given["relevant"].items()]
measures = nDCG @ {AT}, RR @ {AT}
found = dict()
for way, run in given["runs"].items():
    scored = [ScoredDoc(query, one, -rank) for query, ranked in run.items() for rank, one in enumerate(ranked)]
    means = calc_aggregate(measures, qrels, scored)
    found[way] = [means[one] for one in measures]
print(json.dumps(found))
"""

Run = dict[str, list[str]]  # query → documents, best first


def main() -> None:
    options = _options()
    console = Console(width=120)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        sets = _sets(console, folder, options)
        models = _models(console, folder, options)
        environment = {"NIGHTMILL_VECTORS_URL": options.vectors_url} if options.vectors_url else {}
        environment |= {"NIGHTMILL_MODELS_FILE": str(models)} if models else {}
        with embedding_deployment(folder, environment=environment) as inline:
            runs = [_measured(console, inline, collections, re_ranked=models is not None) for collections in sets]
        lost = []
        for collections, found in zip(sets, runs, strict=True):
            whole = judged.joined(collections)
            _show(console, whole, found, _by_ir_measures(console, folder, whole, found))
            default, vectors = (means(found[way][0], whole.relevant)[0] for way in (_DEFAULT, _VECTORS))
            lost += [f"{whole.name}: {default:.3f}, by vectors alone {vectors:.3f}"] * (vectors - default > _MOST_LOST)
        if lost:
            raise SystemExit("the default finds less than vectors alone: " + "; ".join(lost))


def _measured(
    console: Console, inline: Deployment, collections: Sequence[Collection], *, re_ranked: bool
) -> dict[str, tuple[Run, float]]:
    """Return the results of each way in the stores of these collections, and the seconds of a search."""
    asked: dict[str, dict[str, Any]] = {_DEFAULT: {}}
    asked |= {way: {"hybrid_search": how} for way, how in WAYS.items()}
    asked |= _re_ranked() if re_ranked else {}
    runs = {way: Run() for way in asked}
    seconds: dict[str, list[float]] = {way: [] for way in asked}
    for collection in collections:
        store = BenchStore(inline)
        ids = store.upload(collection.papers)
        done = store.ingest(ids)
        assert not done.failed, done
        console.print(
            f"{collection.name}: {len(ids)} documents, {store.chunks():,} chunks came in within {done.seconds:.0f} s"
        )
        names = dict(zip(ids, (paper.name for paper in collection.papers), strict=True))
        _searched(inline.client, store.id, collection, names, {})  # embeds the queries before any search is timed
        for way, how in asked.items():
            run, took = _searched(inline.client, store.id, collection, names, how)
            runs[way] |= run
            seconds[way] += took
    return {way: (runs[way], statistics.median(seconds[way])) for way in asked}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure what searches find")
    parser.add_argument("--queries", type=int, help="so many of them; default: all")
    parser.add_argument("--rfc", type=Path, help="doc-rfc-std as a .deb, or the folder of its files")
    parser.add_argument("--python", action="store_true", help="Python's own documentation, also where RFCs are")
    parser.add_argument("--small", action="store_true", help="only the small stores and Python's topics")
    parser.add_argument("--vectors-url", help="a Weaviate server; default: LanceDB in the deployment's folder")
    parser.add_argument("--ranker", type=Path, help="a cross-encoder's folder; default: one that is trained here")
    parser.add_argument("--no-ranker", action="store_true", help="without re-ranking")
    parser.add_argument("--folder", type=make_folder, help="where the data goes; default: the temporary folder")
    return parser.parse_args()


def _models(console: Console, folder: Path, options: argparse.Namespace) -> Path | None:
    """Return a models file with a re-ranking model."""
    if options.no_ranker:
        return None
    if options.ranker and not options.ranker.is_dir():
        raise SystemExit(f"--ranker: there is no folder {options.ranker}")
    try:
        path = options.ranker or ranker.kept()
    except subprocess.CalledProcessError as error:
        console.print(f"no re-ranking: the model could not be trained here ({error})", soft_wrap=True)
        return None
    console.print(f"re-ranking by {path}{'' if options.ranker else ', trained here'}", soft_wrap=True)
    file = folder / "models.yaml"
    file.write_text(_MODELS_FILE.format(minilm=MINILM, ranker=RANKER, path=path.absolute(), longest=_LONGEST))
    return file


def _re_ranked() -> dict[str, dict[str, Any]]:
    return {way: {"ranker": RANKER, "rerank_depth": depth} for way, depth in _RE_RANKED.items()}


def _sets(console: Console, folder: Path, options: argparse.Namespace) -> list[list[Collection]]:
    """Return sets of collections; each set is measured as one."""
    paraphrased = [judged.small_stores(), [judged.topics()]]
    return paraphrased if options.small else [[_abstracts(console, folder, options)], *paraphrased]


def _abstracts(console: Console, folder: Path, options: argparse.Namespace) -> Collection:
    try:
        found = judged.modules() if options.python else judged.rfcs(folder, options.rfc)
    except judged.NotToBeHad as error:
        console.print(f"RFCs are not to be had here: {error}; Python's own documentation instead", soft_wrap=True)
        found = judged.modules()
    found.queries = dict(list(found.queries.items())[: options.queries])
    found.relevant = {query: found.relevant[query] for query in found.queries}
    return found


def _searched(
    client: OpenAI, store_id: str, collection: Collection, names: Mapping[str, str], how: Mapping[str, Any]
) -> tuple[Run, list[float]]:
    """Return the results, and the seconds of each search."""
    run, seconds = Run(), list[float]()
    for query, text in collection.queries.items():
        began = time.perf_counter()
        most = min(_CHUNKS, how.get("rerank_depth", _CHUNKS))
        body: Any = {"query": text, "max_num_results": most, "ranking_options": how}
        found: Any = client.post(f"/vector_stores/{store_id}/search", body=body, cast_to=object)
        seconds.append(time.perf_counter() - began)
        run[query] = by_document(names[one["file_id"]] for one in found["data"])
    return run, seconds


def by_document(chunks: Any) -> list[str]:
    """Return each document once, at the rank of its best chunk."""
    return list(dict.fromkeys(chunks))


def ndcg(ranked: Sequence[str], relevant: frozenset[str]) -> float:
    """Return the nDCG of one query with binary judgements."""
    return metrics.ndcg(ranked, dict.fromkeys(relevant, 1), AT)


def reciprocal_rank(ranked: Sequence[str], relevant: frozenset[str]) -> float:
    return metrics.reciprocal_rank(ranked, dict.fromkeys(relevant, 1), AT)


def means(run: Run, relevant: Mapping[str, str]) -> tuple[float, float]:
    """Return the mean nDCG and MRR over all queries."""
    wanted = {query: frozenset({document}) for query, document in relevant.items()}
    return (
        statistics.fmean(ndcg(ranked, wanted[query]) for query, ranked in run.items()),
        statistics.fmean(reciprocal_rank(ranked, wanted[query]) for query, ranked in run.items()),
    )


def _by_ir_measures(
    console: Console, folder: Path, collection: Collection, runs: Mapping[str, tuple[Run, float]]
) -> dict[str, list[float]] | None:
    try:
        python = rival.install(folder / "judge", ("ir-measures>=0.4",))
    except rival.NotToBeHad as error:
        console.print(f"ir-measures is not to be had here: {error}")
        return None
    given = {"relevant": collection.relevant, "runs": {way: run for way, (run, _) in runs.items()}}
    found: dict[str, list[float]] = rival.run(["-c", _IR_MEASURES], python=python, given=json.dumps(given))
    return found


def _show(
    console: Console,
    collection: Collection,
    runs: Mapping[str, tuple[Run, float]],
    judge: Mapping[str, Sequence[float]] | None,
) -> None:
    by = "by ir-measures" if judge else "by our own arithmetic"
    title = f"{collection.name}: {len(collection.queries)} queries, {by}"
    table = Table("search", f"nDCG@{AT}", f"MRR@{AT}", "ms a search", title=title, box=box.SIMPLE)
    for way, (run, seconds) in runs.items():
        ours = means(run, collection.relevant)
        shown = judge[way] if judge else ours
        assert all(abs(a - b) < 1e-6 for a, b in zip(ours, shown, strict=True)), (way, ours, shown)
        table.add_row(way, *(f"{figure:.3f}" for figure in shown), f"{seconds * 1000:.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
