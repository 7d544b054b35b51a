"""Measure how fast a batch file is checked, beside a bare JSON parse of the same file.

    python -m bench intake [--lines 50000] [--pairs 5]

Checking is what planning does with each line: read it in bounded memory, decode typed fields, validate the UTF-8, check
the values, remember the id, and look for duplicate ids. The bare parses read lines and turn each into objects: `json`
is Python's own, which a script would use; `msgspec` is the fastest known. Runs are interleaved in one process; figures
are medians.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from bench.deployment import MB
from jobs.batches import lines

_ENDPOINT = "/v1/chat/completions"
#: Characters of the prompts: a question, a page, a document.
_PROMPTS = (100, 2_000, 20_000)


def main() -> None:
    options = _options()
    table = Table(
        "prompt", "lines", "MB", "checked MB/s", "json MB/s", "ratio", "msgspec MB/s", "ratio",
        title="a batch file checked, and merely parsed", box=box.SIMPLE,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.jsonl"
        for length in _PROMPTS:
            count = min(options.lines, 200 * MB // length)
            _write(path, count, length)
            size = path.stat().st_size / MB
            checked, plain, fast = _rates(path, size, options.pairs)
            table.add_row(
                f"{length:,}", f"{count:,}", f"{size:.0f}", f"{checked:.0f}",
                f"{plain:.0f}", f"{checked / plain:.2f}", f"{fast:.0f}", f"{checked / fast:.2f}",
            )  # fmt: skip
    Console(width=120).print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure how fast a batch file is checked")
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--pairs", type=int, default=5)
    return parser.parse_args()


def _write(path: Path, count: int, length: int) -> None:
    """Write prompts of English words, with escapes and accents as text has them."""
    text = ('She said "no\\nmore than twice", naïve as ever. ' * (length // 40 + 1))[:length]
    with path.open("w", encoding="utf-8") as handle:
        for n in range(count):
            messages = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": f"{n}: {text}"}]
            body = {"model": "a-model", "messages": messages, "max_tokens": 64, "temperature": 0}
            line = {"custom_id": f"request-{n}", "method": "POST", "url": _ENDPOINT, "body": body}
            handle.write(json.dumps(line, ensure_ascii=False) + "\n")


def _rates(path: Path, size: float, pairs: int) -> tuple[float, float, float]:
    """Return MB/s of each."""
    ways: tuple[Callable[[Path], None], ...] = (_check, _parse(json.loads), _parse(msgspec.json.decode))
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(pairs):
        for way, taken in zip(ways, seconds, strict=True):
            began = time.perf_counter()
            way(path)
            taken.append(time.perf_counter() - began)
    checked, plain, fast = (size / statistics.median(taken) for taken in seconds)
    return checked, plain, fast


def _check(path: Path) -> None:
    checker = lines.LineChecker(_ENDPOINT)
    with path.open("rb") as handle:
        for text in lines.read(handle):
            checked = checker.check(text)
            assert isinstance(checked, lines.Good), checked
    assert not checker.ids.suspects()


def _parse(decode: Callable[[bytes], object]) -> Callable[[Path], None]:
    def way(path: Path) -> None:
        with path.open("rb") as handle:
            for line in handle:
                decode(line)

    return way


if __name__ == "__main__":
    main()
