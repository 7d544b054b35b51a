"""F24: a fault a minute, for any time; meanwhile the memory of each process is measured.

What kills one of two rivals spares the first, and what takes everything down is left to the run by kills: only what
lives long shows whether it grows. A slope is a least-squares line over the second half of the samples of a process. It
may be 2 MiB an hour; over less than hours that is less than what a heap moves by, and so much is allowed for.
"""

import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression, median

import psutil

from tests.chaos.campaign import Campaign
from tests.chaos.faults import ALL_FAULTS
from tests.support.background_thread import beside
from tests.support.system import System

#: Of two rivals, the ones that live from beginning to end.
SPARED = frozenset({"web", "dispatcher", "gpu"})
_EVERY_SECONDS = 5.0
_WARM_SECONDS = 180.0  # imports, pools and caches fill
_LEAST_SECONDS = 600.0  # a slope over less is noise
_HOUR = 3600.0
_SLOPE = 2.0  # MiB an hour
_NOISE = 4.0  # MiB by which a heap moves without growing
_CONNECTIONS = 20  # descriptors that come with work: an engine worker's 16 connections, and a few
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Sample:
    age: float  # seconds of the process
    rss: float  # MiB
    fds: int


@dataclass(slots=True)
class Scales:
    """Weighs all processes of `up`, by service and pid. Use `with scales.weighing():`."""

    system: System
    samples: dict[tuple[str, int], list[Sample]] = field(default_factory=dict)

    @contextmanager
    def weighing(self) -> Iterator["Scales"]:
        with beside(self._weigh):
            yield self

    def _weigh(self, stop: threading.Event) -> None:
        while not stop.wait(_EVERY_SECONDS):
            for service, process in self._processes():
                with suppress(psutil.Error), process.oneshot():
                    sample = Sample(time.time() - process.create_time(), _resident(process), process.num_fds())
                    self.samples.setdefault((service, process.pid), []).append(sample)

    def _processes(self) -> Iterator[tuple[str, psutil.Process]]:
        with suppress(psutil.Error):
            yield "up", psutil.Process(self.system.supervisor())
        for service, one in self.system.table().items():
            with suppress(psutil.Error):
                main = psutil.Process(one["pid"])
                yield service, main
                for child in main.children(recursive=True):
                    yield f"{service}, child", child

    def keep(self, path: Path) -> None:
        """Write all samples, so that the curve can be drawn."""
        with path.open("w") as file:
            for (service, pid), samples in self.samples.items():
                for one in samples:
                    line = {"service": service, "pid": pid, "age": one.age, "mib": one.rss, "descriptors": one.fds}
                    file.write(json.dumps(line) + "\n")

    def weighed(self) -> list["Weighed"]:
        """Return the processes that lived long enough, by service."""
        found = []
        for (service, pid), samples in sorted(self.samples.items()):
            warm = [one for one in samples if one.age >= _WARM_SECONDS]
            if warm and warm[-1].age - warm[0].age >= _LEAST_SECONDS:
                found.append(Weighed(service, pid, tuple(warm)))
        return found


def _resident(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / _MIB


@dataclass(frozen=True, slots=True)
class Weighed:
    """A process from when it was warm to its end."""

    service: str
    pid: int
    samples: tuple[Sample, ...]

    @property
    def slope(self) -> float:
        """MiB an hour, over the second half of its time: the first still fills caches."""
        ages, sizes = zip(*((one.age, one.rss) for one in self.samples[len(self.samples) // 2 :]), strict=True)
        return linear_regression(ages, sizes).slope * _HOUR

    @property
    def fds(self) -> tuple[float, float]:
        """The median of the first fifth of its time, and of the last."""
        fifth = max(1, len(self.samples) // 5)
        return (
            median(one.fds for one in self.samples[:fifth]),
            median(one.fds for one in self.samples[-fifth:]),
        )

    @property
    def hours(self) -> float:
        """Return the hours over which the slope is computed."""
        return (self.samples[-1].age - self.samples[len(self.samples) // 2].age) / _HOUR

    def violations(self) -> list[str]:
        """F24: no process grows, nor does it keep what it opens."""
        (was, now), found = self.fds, []
        if self.slope * self.hours > max(_SLOPE * self.hours, _NOISE):
            found.append(f"F24: {self.service} {self.pid} grows by {self.slope:.1f} MiB/h")
        if now - was > _CONNECTIONS:
            found.append(f"F24: {self.service} {self.pid} went from {was:.0f} to {now:.0f} descriptors")
        return found

    def row(self) -> str:
        first, last = self.samples[0], self.samples[-1]
        minutes = (last.age - first.age) / 60
        was, now = self.fds
        return (
            f"{self.service:20}  {minutes:5.1f} min  {first.rss:6.1f} → {last.rss:6.1f} MiB"
            f"  {self.slope:+7.1f} MiB/h  {was:.0f} → {now:.0f} descriptors"
        )


def deck(minutes: float, every: float, rng: random.Random, names: Sequence[str]) -> list[str]:
    """Return a fault for each `every` seconds, by weight, in an order that the seed determines."""
    faults = [name for name in names if ALL_FAULTS[name].family != "supervisor"]
    weights = [ALL_FAULTS[name].weight for name in faults]
    return rng.choices(faults, weights, k=max(1, int(minutes * 60 / every)))


def soak(campaign: Campaign, minutes: float, every: float, names: Sequence[str]) -> list[str]:
    """Run it, from calm to stop. Returns what was weighed, as lines of a table."""
    with campaign.running():
        scales = Scales(campaign.system)
        with scales.weighing():
            campaign.calm(3)
            dealt = deck(minutes, every, campaign.scene.rng, names)
            campaign.strike(dealt, every=every)
            campaign.drain()
        size, rows = _database(campaign.system.data), len(campaign.load.jobs)
        campaign.judge()
        campaign.stop()
    scales.keep(campaign.folder / "samples.jsonl")
    weighed = scales.weighed()
    campaign.journal.violation(*(why for one in weighed for why in one.violations()))
    table = [one.row() for one in weighed] or ["nothing lived long enough to be weighed"]
    if size:
        table.append(f"the database has {size / _MIB:.1f} MiB, {size / 1024 / max(1, rows):.1f} KiB a batch")
    return table


def _database(data: Path) -> int:
    """Bytes of SQLite's files; nothing where another database was chosen."""
    return sum(path.stat().st_size for path in data.glob("nightmill.db*"))
