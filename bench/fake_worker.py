"""Run the `gpu` worker over the fake engine, as a line of a benchmark's Procfile.

`BENCH_ANSWER_SECONDS` is the time that each answer takes. A request whose `user` is `REFUSED` is refused.
"""

import os
from collections.abc import Mapping
from typing import Final

from jobs.fleet.models_file import Registry
from jobs.settings import Settings
from jobs.timings import Timings
from tests.support.fake_engine import FakeEngine
from workers import __main__ as worker
from workers import engine_process
from workers.engines.http.http_engine import Permission
from workers.engines.port import Answer, Request, refusal
from workers.engines.router import Router

REFUSED: Final = "refused"


class FakeRouter(Router):
    """A router that lists the fake's model as an endpoint would."""

    @property
    def discovered_models(self) -> Mapping[str, bool]:
        return dict.fromkeys(self.models, False)


def build(_config: Settings, registry: Registry, _queue: str, allows_external: Permission, _timings: Timings) -> Router:
    engine = FakeEngine(delay=float(os.environ.get("BENCH_ANSWER_SECONDS", "0")), fault=_refuse)
    return FakeRouter([engine], registry, allows_external)


def _refuse(request: Request) -> Answer | None:
    if request.body.get("user") != REFUSED:
        return None
    return refusal(400, "The fake engine refuses this request.", code="context_length_exceeded", param="messages")


if __name__ == "__main__":
    engine_process.build_router = build
    worker.main(["gpu"])
