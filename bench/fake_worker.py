"""A line of a benchmark's Procfile: the `gpu` worker as it is, over the fake engine.

`BENCH_ANSWER_SECONDS` is how long each answer takes.
"""

import os
from collections.abc import Mapping

from jobs.fleet.models_file import Registry
from jobs.settings import Settings
from workers import __main__ as worker
from workers.engines.fake import FakeEngine
from workers.engines.router import Router


class FakeRouter(Router):
    """Shows the fake's model as an endpoint would."""

    @property
    def discovered(self) -> Mapping[str, bool]:
        return dict.fromkeys(self.models, False)


def build(_config: Settings, registry: Registry, _queue: str) -> Router:
    return FakeRouter([FakeEngine(delay=float(os.environ.get("BENCH_ANSWER_SECONDS", "0")))], registry)


if __name__ == "__main__":
    worker.build_router = build
    worker.main(["gpu"])
