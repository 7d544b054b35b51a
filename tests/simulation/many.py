"""Many seeds on every core, each process with a database of its own."""

import multiprocessing
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.bootstrap import migrate
from tests.simulation.play import play
from tests.simulation.world import SimulatedDatabase
from tests.support.services import MEMORY


@contextmanager
def database() -> Iterator[SimulatedDatabase]:
    with tempfile.TemporaryDirectory(prefix="nightmill-sim-", dir=MEMORY) as folder:
        url = f"sqlite:///{folder}/world.db"
        migrate(url)
        world = SimulatedDatabase(url)
        yield world
        world.close()


def chunk(seeds: range) -> list[tuple[int, list[str]]]:
    with database() as db:
        return [(seed, play(seed, db)) for seed in seeds]


def many(first: int, count: int, processes: int) -> Iterator[tuple[int, list[str]]]:
    """Yield each seed with what went wrong in it, as they end."""
    chunks = [range(at, min(at + 50, first + count)) for at in range(first, first + count, 50)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for results in pool.imap_unordered(chunk, chunks):
            yield from results
