"""A sample of a batch's input, and what it says of the whole."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cli.snapshot import duration, reasoning_of
from cli.trouble import Trouble

_WORTH_TELLING = 2.0  # seconds
_BEFORE = "; before that it waited {} for its turn and its model, which comes once and not with each request"


def write_sample(source: Path, count: int, target: Path) -> int:
    """Write `count` lines, spread evenly over the file; returns how many lines the file has. Raises Trouble."""
    total = sum(1 for _ in _requests(source))
    if not total:
        raise Trouble(f"{source} holds no requests")
    taken = min(count, total)
    wanted = {number * total // taken for number in range(taken)}
    with target.open("wb") as out:
        out.writelines(line for number, line in enumerate(_requests(source)) if number in wanted)
    return total


def _requests(source: Path) -> Iterator[bytes]:
    """Lines that are not blank, each with its end."""
    with source.open("rb") as handle:
        for line in handle:
            if line.strip():
                yield line if line.endswith(b"\n") else line + b"\n"


def extrapolate(job: Mapping[str, Any], total: int) -> str:
    """What all lines would take, going by the job that ran some of them: the work, without what it waited for first."""
    usage, done = job["usage"], job["progress"]["completed"] + job["progress"]["failed"]
    if not done:
        raise Trouble("the sample has answered nothing, which says nothing of the rest")
    times = total / done
    thought = round(reasoning_of(usage) * times)
    tokens = f"{round(usage['input_tokens'] * times):,} tokens in, {round(usage['output_tokens'] * times):,} out"
    tokens += f" ({thought:,} of them reasoning)" if thought else ""
    failed = f", {round(job['progress']['failed'] * times):,} of them failed" if job["progress"]["failed"] else ""
    told = f"all {total:,} requests, going by these {done}: about {tokens}{failed}"
    worked = job.get("worked_seconds")
    if worked is None:
        return told
    told += f"; {duration(worked * times)} at the sample's pace, less where the engine takes more at once"
    waited = (job["finalizing_at"] or 0) - job["created_at"] - worked
    return f"{told}{_BEFORE.format(duration(waited)) if waited >= _WORTH_TELLING else ''}"
