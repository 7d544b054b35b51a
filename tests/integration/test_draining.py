"""Workers that are drained and webhooks that are paused, by the command, in a real deployment."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from jobs.queues import Queue
from tests.support.receiver import Receiver
from tests.support.stub_engine import prompts
from tests.support.system import MODEL, StubEngine, System, eventually, pause

pytestmark = [pytest.mark.verify, pytest.mark.timeout(300)]  # the first test waits for the deployment's start
ASKED: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}


class Place:
    """A deployment whose engine takes five seconds for an answer, and somebody who is told of what ends."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.engine = stack.enter_context(StubEngine(folder, MODEL, delay_ms=5000))
        self.receiver = stack.enter_context(Receiver())
        self.system = System(folder, self.engine.url, self.engine.url)
        stack.callback(self.system.destroy)
        self.system.start()
        self.client = OpenAI(base_url=f"{self.system.url}/v1", api_key=self.system.api_key, max_retries=0, timeout=60)

    def answered(self, *, stream: bool) -> float:
        """Ask, and say when the answer had ended."""
        said = self.client.chat.completions.create(**ASKED, stream=stream)
        assert list(said) if stream else said.choices
        return time.monotonic()

    def worker(self, pool: str) -> str:
        shown = json.loads(self.system.cli("workers", "--json").stdout)
        (name,) = [worker["id"] for worker in shown["workers"] if worker["pool"] == pool]
        return str(name)

    def batch(self) -> str:
        """Create a batch of one line with a webhook to the receiver."""
        line = {"custom_id": "r", "method": "POST", "url": "/v1/chat/completions", "body": ASKED}
        path = self.folder / "one.jsonl"
        path.write_text(json.dumps(line) + "\n")
        file = self.client.files.create(file=path, purpose="batch")
        return self.client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            extra_body={"webhook": {"url": self.receiver.url("ok")}},
        ).id

    def command(self, *words: str) -> str:
        done = self.system.cli(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path_factory.mktemp("draining"), stack)


@pytest.mark.parametrize("stream", [False, True])
def test_a_worker_is_drained_once_its_clients_have_their_answers(place: Place, stream: bool) -> None:
    name, before = place.worker("gpu"), len(prompts(place.engine.log))
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(place.answered, stream=stream)
        eventually(lambda: len(prompts(place.engine.log)) > before, 20, "it is asked")
        told = place.command("drain", "worker", name)
        drained = time.monotonic()
        answered = asking.result(30)
    with pytest.raises(openai.InternalServerError) as refused:
        place.answered(stream=stream)
    place.command("resume", "worker", name)

    assert "nothing runs any more" in told
    assert answered <= drained + 0.5, "the client's thread may be late to look"
    assert refused.value.code == "no_worker"
    eventually(place.system.ready, 30, "it takes work again")


@pytest.mark.parametrize("kind", ["queue", "worker"])
def test_pending_deliveries_wait_while_sending_is_paused(place: Place, kind: str) -> None:
    name = Queue.WEBHOOKS.value if kind == "queue" else place.worker("io")
    sent = len(place.receiver.requests)
    place.command("drain", kind, name)
    batch = place.batch()
    eventually(lambda: place.client.batches.retrieve(batch).status == "completed", 60, "it is completed")
    pause(4.0)  # longer than a message takes to be published again
    meanwhile = len(place.receiver.requests)
    place.command("resume", kind, name)

    assert meanwhile == sent
    eventually(lambda: len(place.receiver.requests) == sent + 1, 30, "it is told of")
