"""Serve whole tuned models with real vLLM, one after the other: `… DATA_DIR` prints what they answer, as JSON.

DATA_DIR has `models.yaml` with the base `tiny`, and the folders 0, 1 and 2 of models. The last has another's probes.
A process of its own, because importing vLLM under the tests' warnings-as-errors fails.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from jobs.fleet.models_file import Models
from jobs.settings import Settings
from workers.engines.build_engines import build_tuned_router
from workers.engines.port import Adapter, AdapterRefused, Request
from workers.engines.router import Router

CHAT = "/v1/chat/completions"


async def ask(router: Router, folder: Path, number: int, prompt: str) -> str:
    body = {"model": "tiny", "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 12}
    adapter = Adapter(f"full-{number:016x}", f"{number:064x}", folder / str(number), whole=True)
    answer = await router.answer(Request(CHAT, body, f"req_{time.monotonic_ns()}", adapter=adapter))
    read: dict[str, Any] = msgspec.json.decode(answer.body)
    assert answer.status == 200, read
    return str(read["choices"][0]["message"]["content"])


async def serve(folder: Path) -> dict[str, Any]:
    config = Settings(data_dir=folder, models_file=str(folder / "models.yaml"))
    router = build_tuned_router(config, Models(config))
    await router.start()
    began = time.monotonic()
    texts: dict[str, Any] = {"first": await ask(router, folder, 0, "Hi"), "second": await ask(router, folder, 1, "Hi")}
    texts["together"] = await asyncio.gather(*(ask(router, folder, n % 2, "Hi") for n in range(8)))
    texts["version"] = router.version_of("tiny")  # of the model that is loaded
    try:
        await ask(router, folder, 2, "Hi")
    except AdapterRefused as error:
        texts["refused"] = error.failed_probe
    await router.close()
    return {**texts, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM logs to stdout
    result = asyncio.run(serve(Path(sys.argv[1])))
    out.write(json.dumps(result))
    out.close()
