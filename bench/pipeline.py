"""Measure the whole way of a batch without a model: the cost of Nightmill itself.

    python -m bench pipeline [--engine fake|stub] [--lines 10000,100000,1000000]

The deployment has the API, dispatcher, cpu and gpu, with SQLite in FULL sync. `fake`: the gpu worker answers from
memory, in process. `stub`: the worker asks a server over HTTP, on the same machine. Files of each size are uploaded.
The time is from the creation of the batch to its end; every output line is counted. CPU is that of all processes but
the stub; memory is the peak of each process during that batch.

With `stub`, a bare aiohttp loop (`bench.bare_loop`) then sends the same bodies to the same server, with as many in
flight. The table shows the CPU of the gpu worker for each line, that of the loop, and the ratio.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from bench import rival
from bench.bare_loop import LOOPS
from bench.deployment import MB, Deployment, Finished, chats, deployed, make_folder
from jobs.settings import Settings
from tests.support import stub_engine

_LINES = {"web": "", "dispatcher": "", "cpu": "", "evaluate": ""}
_LIMITS = {"NIGHTMILL_BATCH_MAX_LINES": "10000000", "NIGHTMILL_BATCH_MAX_BYTES": "10000000000"}
MODEL = "fake-model"
PROMPTS = "prompts.log"  # the log of the stub's prompts


def main() -> None:
    options = _options()
    sizes = [int(word) for word in options.lines.split(",")]
    console = Console(width=200)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, deployment(Path(folder), options.engine) as inline:
        inline.wait_for("cpu.plan")
        inline.wait_for("gpu.generate")
        table = Table(
            "lines", "plan s", "run s", "finish s", "total s", "items/s", "running", "µs CPU an item", "peak MB",
            "gpu / bare loops",
            title=f"pipeline, engine {options.engine}, SQLite", box=box.SIMPLE,
        )  # fmt: skip
        for size in sizes:
            table.add_row(*_measure(inline, Path(folder), size))
        console.print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure the pipeline without a model")
    parser.add_argument("--engine", choices=("fake", "stub"), default="fake")
    parser.add_argument("--lines", default="10000,100000", help="sizes of the batches, comma-separated")
    parser.add_argument("--folder", type=make_folder, help="where the data goes; default: the temporary folder")
    return parser.parse_args()


@contextmanager
def deployment(folder: Path, engine: str, **given: str) -> Iterator[Deployment]:
    environment = {**_LIMITS, "NIGHTMILL_VLLM_ENABLED": "false", **given}
    if engine == "fake":
        with deployed(folder, {**_LINES, "gpu": "python -m bench.fake_worker"}, (), environment) as inline:
            yield inline
        return
    with (
        stub_engine.running(folder / PROMPTS, "--models", MODEL) as url,
        deployed(folder, {**_LINES, "gpu": ""}, ("--engine-url", f"{url}/v1"), environment) as inline,
    ):
        inline.engine_url = url
        yield inline


def _measure(inline: Deployment, folder: Path, size: int) -> Iterator[str]:
    path = folder / f"{size}.jsonl"
    chats(path, size, MODEL)
    file_id = inline.upload(path)
    inline.forget_peaks()
    before = inline.cpu()
    done = inline.run(file_id)
    used = {name: seconds - before[name] for name, seconds in inline.cpu().items()}
    check(inline, done, size)
    yield f"{size:,}"
    yield from (f"{phase:.1f}" for phase in (done.planning, done.running, done.finishing))
    yield f"{done.seconds:.1f}"
    yield f"{size / done.seconds:,.0f}"
    yield f"{size / done.running:,.0f}"
    yield f"{sum(used.values()) / size * 1e6:.0f} ({_by_name({k: v / size * 1e6 for k, v in used.items()})})"
    yield _by_name({name: peak / MB for name, peak in inline.peaks().items()})
    yield _beside_bare_loops(inline, path, used["gpu"] / size * 1e6, size)


def _beside_bare_loops(inline: Deployment, path: Path, worker: float, size: int) -> str:
    if not inline.engine_url:
        return ""
    ratios = []
    for loop in LOOPS:
        done = rival.run(["-m", "bench.bare_loop", inline.engine_url, path, str(Settings().engine_concurrency), loop])
        bare = done["cpu"] / size * 1e6
        ratios.append(f"{loop} {bare:.0f} = {worker / bare:.2f}")
    return f"{worker:.0f} / {', '.join(ratios)}"


def _by_name(figures: Mapping[str, float]) -> str:
    return " ".join(f"{name} {figure:.0f}" for name, figure in figures.items() if name != "broker")


def check(inline: Deployment, done: Finished, size: int) -> None:
    """Check that every custom_id occurs once."""
    with inline.client.files.with_streaming_response.content(done.job["output_file_id"]) as answer:
        names = [line.split('"custom_id":"', 1)[1].split('"', 1)[0] for line in answer.iter_lines()]
    assert len(names) == len(set(names)) == size, (len(names), len(set(names)), size)


if __name__ == "__main__":
    main()
