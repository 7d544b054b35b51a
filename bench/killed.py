"""Run one large batch whose worker is killed again and again.

    python -m bench killed [--lines 1000000] [--kills 10] [--seed 1]

The deployment is that of `bench pipeline --engine stub`. The gpu worker gets kill -9 when a thousandth of the lines is
answered, when all but a thousandth are, and at random moments in between. Each custom_id must occur once in the output.
The stub's log of prompts shows which lines ran twice: at most the shards in flight at each kill.
"""

import argparse
import random
import signal
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil
from rich.console import Console

from bench.deployment import MB, Deployment, chats, make_folder
from bench.pipeline import MODEL, PROMPTS, check, deployment
from jobs.ledger.slot_weights import SLOTS
from jobs.settings import Settings

_LOOK_SECONDS = 0.02
_RESUME_SECONDS = 120.0
_SETTLED_SECONDS = 0.1


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        with deployment(folder, "stub") as inline:
            inline.wait_for("cpu.plan")
            inline.wait_for("gpu.generate")
            _measure(inline, folder, options, Console(width=150))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="kill the worker of one large batch again and again")
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=make_folder, help="where the data goes; default: the temporary folder")
    return parser.parse_args()


def moments(lines: int, kills: int, rng: random.Random) -> list[int]:
    """Return after how many answers the worker is killed: near the beginning, near the end, and in between."""
    ends = [lines // 1000, lines - lines // 1000]
    return sorted([*ends[:kills], *(rng.randrange(lines) for _ in range(kills - 2))])


class PromptLog:
    """The number of prompts that the stub received, read from its growing log."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("rb")
        self._lines = 0

    def count(self) -> int:
        while block := self._log.read(1 << 20):
            self._lines += block.count(b"\n")
        return self._lines

    def settled(self) -> int:
        """Wait until requests on their way have arrived at the stub."""
        before = -1
        while (count := self.count()) != before:
            before = count
            threading.Event().wait(_SETTLED_SECONDS)
        return count


@dataclass(slots=True)
class Killer:
    """Kill the worker when the agreed number of prompts has arrived."""

    inline: Deployment
    asked: PromptLog
    due: list[int]
    resumed: list[float] = field(default_factory=list)
    peaks: dict[str, int] = field(default_factory=dict)

    def run(self) -> None:
        for moment in self.due:
            while self.asked.count() < moment:
                threading.Event().wait(_LOOK_SECONDS)
            self.weigh()
            self._kill()
            self.resumed.append(self._until_asked())

    def weigh(self) -> None:
        for name, peak in self.inline.peaks().items():
            self.peaks[name] = max(peak, self.peaks.get(name, 0))

    def _kill(self) -> None:
        for process in self.inline.groups()["gpu"]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)

    def _until_asked(self) -> float:
        began, before = time.monotonic(), self.asked.settled()
        while self.asked.count() == before:
            assert time.monotonic() - began < _RESUME_SECONDS, "the batch does not go on"
            threading.Event().wait(_LOOK_SECONDS)
        return time.monotonic() - began


def _measure(inline: Deployment, folder: Path, options: argparse.Namespace, console: Console) -> None:
    path = folder / "input.jsonl"
    chats(path, options.lines, MODEL)
    file_id = inline.upload(path)
    inline.forget_peaks()
    asked = PromptLog(folder / PROMPTS)
    killer = Killer(inline, asked, moments(options.lines, options.kills, random.Random(options.seed)))
    thread = threading.Thread(target=killer.run, name="killer", daemon=True)
    thread.start()
    done = inline.run(file_id, killing=True)
    thread.join()
    killer.weigh()
    check(inline, done, options.lines)
    config, again = Settings(), asked.count() - options.lines
    bound = options.kills * SLOTS * config.shard_lines
    console.print(f"{options.lines:,} lines, {options.kills} kills (seed {options.seed}), each custom_id once")
    console.print(f"{done.seconds:.1f} s, {options.lines / done.seconds:,.0f} items/s; running {done.running:.1f} s")
    console.print(
        f"asks again {median(killer.resumed):.1f} s (median), {max(killer.resumed):.1f} s (worst) after a kill"
    )
    console.print(f"lines asked twice: {again:,}, at most {bound:,}")
    console.print("peak MB: " + " ".join(f"{name} {peak / MB:.0f}" for name, peak in killer.peaks.items()))
    assert again <= bound, "more was asked again than the kills account for"


if __name__ == "__main__":
    main()
