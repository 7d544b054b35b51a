"""A worker process follows a models file that changes."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from jobs.fleet.models_file import Models
from jobs.platform.limiters import SharedExclusiveLock
from jobs.settings import Settings
from jobs.timings import Timings
from tests.support import stub_engine
from tests.support.fake_engine import FakeEngine
from workers.engine_process import Reloading
from workers.engines.http.http_engine import HttpEngine
from workers.engines.port import Request
from workers.engines.router import Router
from workers.runtime.engine_host import EngineHost

FILE = """
models:
  tiny: {source: {packaged: smollm2-135m-instruct}, engine: vllm, engine_args: {max_num_seqs: 4}, aliases: [small]}
  vectors: {source: {packaged: all-minilm-l6-v2}, engine: embed}
"""
FAR = '  far: {source: {urls: ["http://127.0.0.1:9"]}, engine: http}\n'


@dataclass
class Process:
    """The worker of gpu.generate: `tiny` is loaded."""

    file: Path
    router: Router
    reloading: Reloading
    ends: list[str] = field(default_factory=list)

    def finds(self, text: str) -> None:
        other = self.file.with_suffix(".new")
        other.write_text(text)
        os.replace(other, self.file)  # noqa: PTH105
        self.reloading.look()


@contextmanager
def running(folder: Path) -> Iterator[Process]:
    file = folder / "models.yaml"
    file.write_text(FILE)
    config = Settings(data_dir=folder, models_file=str(file))
    context: Any = SimpleNamespace(config=config, models=Models(config), timings=Timings())
    router = Router([FakeEngine(("tiny",))], context.models.now())
    host = EngineHost(router, lambda: None)
    host.start()
    server_lock = SharedExclusiveLock(folder / "run", 30)
    ends: list[str] = []
    yield Process(
        file, router, Reloading(context, host, router, "gpu.generate", server_lock, lambda: ends.append("ended")), ends
    )
    host.close()
    server_lock.close()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    with running(tmp_path) as found:
        yield found


@pytest.mark.parametrize(
    "changed",
    [
        lambda text: text.replace("max_num_seqs: 4", "max_num_seqs: 8"),
        lambda text: text.replace("packaged: smollm2-135m-instruct", "path: elsewhere"),
        lambda text: text.replace("tiny:", "other:"),
        lambda text: text.replace("engine: vllm,", "engine: vllm, queue: gpu.other,"),
        lambda text: text.replace("engine: embed", "engine: embed, queue: gpu.generate"),
    ],
    ids=["arguments", "source", "name", "gone", "come"],
)
def test_change_of_loaded_models_ends_the_process_once(process: Process, changed: Callable[[str], str]) -> None:
    process.finds(changed(FILE))
    process.reloading.look()

    assert process.ends == ["ended"]


@pytest.mark.parametrize(
    "changed",
    [
        lambda text: text,
        lambda text: text.replace("engine: embed", "engine: embed, engine_args: {threads: 2}"),
        lambda text: text + FAR,
        lambda text: text + FAR.replace("http}", "http, queue: gpu.far}"),
        lambda text: text.replace("aliases:", "owned_by: us, max_model_len: 9, aliases:"),
        lambda text: text.replace("engine: vllm", "engine: warp"),
        lambda text: text.replace("engine: embed", "engine: vllm"),
    ],
    ids=["nothing", "of another queue", "a server", "a server of another queue", "what is said of it", "wrong", "two"],
)
def test_other_changes_do_not_end_the_process(process: Process, changed: Callable[[str], str]) -> None:
    process.finds(changed(FILE))

    assert process.ends == []
    assert process.router.models[:1] == ("tiny",)


def test_models_that_cannot_share_process_are_logged_once(process: Process, caplog: pytest.LogCaptureFixture) -> None:
    process.finds(FILE.replace("engine: embed", "engine: vllm"))
    process.reloading.look()

    assert [record.message for record in caplog.records] == ["models_file.rejected"]
    process.finds(FILE.replace("max_num_seqs: 4", "max_num_seqs: 8"))
    assert process.ends == ["ended"]


def test_servers_and_names_follow_models_file(process: Process, tmp_path: Path) -> None:
    def asked(model: str) -> str:
        request = Request("/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": "a"}]}, "r")
        answer = process.reloading._host.call(process.router.answer(request)).result()
        return str(msgspec.json.decode(answer.body).get("model"))

    with stub_engine.running(tmp_path / "log", "--models", "its-name") as url:
        process.finds(
            FILE.replace("small", "little")
            + f'  far: {{source: {{urls: ["{url}"], model: its-name}}, engine: http, aliases: [remote]}}\n'
        )

        assert [asked(name) for name in ("little", "small", "far", "remote")] == [
            "tiny",
            "None",
            "its-name",
            "its-name",
        ]
        assert process.reloading._host._others is not None, "who breaks a server is tried alone among all that ask it"

        process.finds(FILE)
        assert [asked(name) for name in ("small", "far")] == ["tiny", "None"]
        http = process.router.engines.running[-1]
        assert isinstance(http, HttpEngine)
        assert (http.endpoints, http._watchers) == ((), {})
