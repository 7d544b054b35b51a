"""Workers of a deployment under test that compute nothing: `python -m tests.support.idle_workers finetune|tuned`.

finetune   trains with `tests.support.fake_trainer`; an adapter's weights are a text of the job's seed and the step
tuned      serves `BASE` by an engine that answers with the weights of the adapter that it has loaded
"""

import sys
from dataclasses import replace

from jobs.fleet.models_file import Registry
from jobs.queues import Queue
from jobs.settings import Settings
from jobs.timings import Timings
from tests.support import training_worker
from tests.support.fake_engine import FakeEngine
from workers import __main__ as worker
from workers import engine_process
from workers.engines.http.http_engine import Permission
from workers.engines.port import Adapter, Answer, Request
from workers.engines.router import Router

BASE = "stub-base"
QUEUE = "gpu.adapters"
ADAPTERS = 2  # loaded at once: fewer than are asked for
TRAINER = "tests.support.fake_trainer"
assert QUEUE not in set(Queue)


class WeightsEngine(FakeEngine):
    """A fake engine whose answers begin with the weights of the adapter, as they were when it was loaded."""

    def __init__(self) -> None:
        super().__init__((BASE,), delay=0.05, adapters=ADAPTERS)
        self._weights: dict[str, str] = {}

    async def _load(self, adapter: Adapter) -> None:
        await super()._load(adapter)
        self._weights[adapter.name] = (adapter.folder / "adapter_model.safetensors").read_text()

    async def _unload(self, adapter: Adapter) -> None:
        del self._weights[adapter.name]

    async def _answer(self, request: Request) -> Answer:
        if request.adapter:
            request = replace(request, adapter=replace(request.adapter, name=self._weights[request.adapter.name]))
        return await super()._answer(request)


def build(_config: Settings, registry: Registry, _queue: str, allows_external: Permission, _timings: Timings) -> Router:
    return Router([WeightsEngine()], registry, allows_external)


def main(pool: str) -> None:
    if pool == "finetune":
        training_worker.use(TRAINER)
        worker.main(["finetune"])
    else:
        engine_process.build_router = build
        worker.main(["gpu", QUEUE])


if __name__ == "__main__":
    main(sys.argv[1])
