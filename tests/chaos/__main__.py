"""`python -m tests.chaos --kills 100 --seed 1`: the long run, and a table. `--soak 30`: a fault a minute, and scales.

Storage: what is embedded; `--database-url postgresql`; or `--distributed`: PostgreSQL, RabbitMQ and S3, which die too.
Vectors: LanceDB; or `--weaviate`, which dies too.
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.chaos.campaign import Campaign
from tests.chaos.faults import (
    ALL_FAULTS,
    FAULTS,
    SERVER_FAULTS,
    SQLITE_ONLY,
    TUNING_FAULTS,
    VALKEY_ONLY,
    VECTOR_FAULTS,
    VLLM_FAULTS,
    deck,
)
from tests.chaos.load import Mix
from tests.chaos.soak import SPARED, soak
from tests.chaos.table import shown
from tests.support.distributed import Servers, servers
from tests.support.services import chosen_database
from tests.support.weaviate import Weaviate

_POISON = ("!reset", "!html", "!500", "!flaky2", "!crash", "!hang")
_REAL = ("smollm2-135m-instruct", "all-minilm-l6-v2")
#: A real engine takes both cores for minutes: heartbeats come late, and so do answers.
_PATIENCE = 5
_DEATHS = {"NIGHTMILL_ENGINE_DEATHS": "1000"}  # they are of our making


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="instead of kills one after the other")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two faults of a soak")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    parser.add_argument("--database-url", default="", help="`postgresql` alone starts an embedded server")
    parser.add_argument("--distributed", action="store_true", help="on servers of PostgreSQL, RabbitMQ and S3")
    parser.add_argument("--weaviate", action="store_true", help="vectors in a server of Weaviate")
    parser.add_argument("--vllm", action="store_true", help="the real engines in process instead of the stub")
    parser.add_argument("--only", action="append", choices=list(ALL_FAULTS), help="this fault; any number of times")
    parser.add_argument("--patience", type=float, default=1.0, help="how much slower than usual everything may be")
    parser.add_argument("--keep", type=Path, help="the folder of the run, kept afterwards")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = stack.enter_context(_folder(options.keep))
        url = stack.enter_context(chosen_database(options.database_url))
        shared = stack.enter_context(servers(folder / "servers")) if options.distributed else None
        campaign = _campaign(folder, options.seed, url, shared, options.vllm)
        campaign.weaviate = stack.enter_context(_weaviate(folder / "weaviate")) if options.weaviate else None
        campaign.patience *= options.patience
        campaign.told = _progress
        if options.soak:
            campaign.spared = SPARED
            weighed = soak(campaign, options.soak, options.every, options.only or _possible(options))
            print("\n".join(weighed))
            return _report(campaign)
        return run(campaign, options.kills, options.only or _possible(options), peaceful=not options.only)


def _possible(options: argparse.Namespace) -> list[str]:
    """Return the faults that can happen to the chosen parts."""
    spared: set[str] = set()
    if options.database_url or options.distributed:
        spared |= SQLITE_ONLY
    if options.distributed:
        spared |= VALKEY_ONLY
    faults = VLLM_FAULTS if options.vllm else FAULTS | TUNING_FAULTS
    servers = {**(SERVER_FAULTS if options.distributed else {}), **(VECTOR_FAULTS if options.weaviate else {})}
    return [*(name for name in faults if name not in spared), *servers]


@contextmanager
def _weaviate(folder: Path) -> Iterator[Weaviate]:
    server = Weaviate(folder)
    server.start()
    try:
        yield server
    finally:
        server.close()


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="nightmill-chaos-") as folder:
        yield Path(folder)


def _campaign(folder: Path, seed: int, url: str, shared: Servers | None, vllm: bool) -> Campaign:
    if not vllm:
        mix = Mix(tuned=2, evaluated=2, pipelines=2, aliased=2, limited=True)
        return Campaign(folder, seed, url, mix=mix, servers=shared)
    mix = Mix(lines=(40, 120), poison=(), cancelled=0, models=_REAL, judged=False, stores=0, repeated=False)
    slow: dict[str, Any] = {"width": 2, "stubbed": False, "patience": _PATIENCE, "environment": _DEATHS}
    return Campaign(folder, seed, url, mix=mix, servers=shared, **slow)


def run(campaign: Campaign, kills: int, names: Sequence[str], *, peaceful: bool) -> int:
    """`peaceful`: first what needs no kill, poison and cancels among it."""
    wait = (1.5, 4.5) if campaign.stubbed else (3.0, 12.0)
    with campaign.running():
        campaign.calm(3)
        if peaceful and campaign.stubbed:
            campaign.poison(_POISON)
        if peaceful:
            campaign.cancels(6 if campaign.stubbed else 1)
        campaign.strike(deck(kills, campaign.scene.rng, {name: ALL_FAULTS[name] for name in names}), wait)
        campaign.drain()
        campaign.judge()
        campaign.stop()
    return _report(campaign)


def _progress(line: str) -> None:
    """Print the progress of a long run."""
    if " fault " in line or "VIOLATION" in line or "drained" in line:
        print(line, file=sys.stderr, flush=True)


def _report(campaign: Campaign) -> int:
    print(shown(campaign))
    for name, lines in campaign.system.errors().items():
        print(f"{name} logged {len(lines)} errors, the first: {lines[0]}")
    if campaign.journal.violations:
        print(campaign.journal.story())
    return 1 if campaign.journal.violations else 0


if __name__ == "__main__":
    sys.exit(main())
