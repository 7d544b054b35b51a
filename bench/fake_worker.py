"""Run the `gpu` worker over the fake engine, as a line of a benchmark's Procfile.

`BENCH_ANSWER_SECONDS` is the time that each answer takes.
"""

import os
from collections.abc import Mapping

from jobs.fleet.models_file import Registry
from jobs.settings import Settings
from jobs.timings import Timings
from workers import __main__ as worker
from workers import engine_process
from workers.engines.fake import FakeEngine
from workers.engines.http.http_engine import Permission
from workers.engines.router import Router


class FakeRouter(Router):
    """A router that lists the fake's model as an endpoint would."""

    @property
    def discovered(self) -> Mapping[str, bool]:
        return dict.fromkeys(self.models, False)


def build(_config: Settings, registry: Registry, _queue: str, allows_external: Permission, _timings: Timings) -> Router:
    return FakeRouter([FakeEngine(delay=float(os.environ.get("BENCH_ANSWER_SECONDS", "0")))], registry, allows_external)


if __name__ == "__main__":
    engine_process.build_router = build
    worker.main(["gpu"])
