"""Two hosts that share PostgreSQL, RabbitMQ, S3 and Weaviate and nothing else, each with all processes; one may die."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import OpenAI
from openai.types import Batch

from jobs.batches.batches import ENDPOINTS
from jobs.clock import now
from jobs.db.engine import Database
from jobs.ids import new_id
from jobs.ledger import ledger
from jobs.ledger.tables import Job
from jobs.security import keys
from jobs.settings import Settings
from tests.sdk.front import standing_before
from tests.sdk.test_sdks import CHECKS
from tests.support.distributed import Servers, servers
from tests.support.receiver import Receiver
from tests.support.services import need
from tests.support.stub_engine import prompts
from tests.support.system import EMBED_ALIAS, EMBED_MODEL, MODEL, ROOT, StubEngine, System, eventually, pause
from tests.support.weaviate import Weaviate

pytestmark = [pytest.mark.verify, pytest.mark.timeout(700), pytest.mark.distributed]
CHAT = "/v1/chat/completions"
#: Lines of one host's two shards, which may be asked again when it dies.
LOST_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Cluster:
    """The servers, the hosts, and the engine that both ask."""

    shared: Servers
    one: System
    two: System
    engine: StubEngine

    def client(self, host: System) -> OpenAI:
        return OpenAI(base_url=f"{host.url}/v1", api_key=self.one.api_key, max_retries=30)

    def submit(self, folder: Path, count: int, words: str) -> Batch:
        """Submit a batch through the first host."""
        path = folder / "in.jsonl"
        with path.open("w") as handle:
            for n in range(count):
                body = {"model": MODEL, "messages": [{"role": "user", "content": f"{words} {n}"}]}
                line = {"custom_id": f"r{n}", "method": "POST", "url": CHAT, "body": body}
                handle.write(json.dumps(line) + "\n")
        sdk = self.client(self.one)
        with path.open("rb") as handle:
            file = sdk.files.create(file=handle, purpose="batch")
        return sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")

    def begin(self, folder: Path, count: int, words: str) -> Batch:
        """Submit a batch, and return when some lines are answered and most are not."""
        batch = self.submit(folder, count, words)
        eventually(lambda: self._begun(batch), 30, "it has begun")
        return batch

    def _begun(self, batch: Batch) -> bool:
        counts = self.client(self.one).batches.retrieve(batch.id).request_counts
        return counts is not None and counts.completed > 0

    def finish(self, batch: Batch, count: int, host: System | None = None) -> None:
        """Every line once, read through the other host."""
        sdk = self.client(host or self.two)
        eventually(lambda: sdk.batches.retrieve(batch.id).status == "completed", 120, "the batch is done", every=0.3)
        done = sdk.batches.retrieve(batch.id)
        assert done.output_file_id
        lines = sdk.files.content(done.output_file_id).content.splitlines()
        assert [json.loads(line)["custom_id"] for line in lines] == [f"r{n}" for n in range(count)]
        assert done.usage is not None
        assert done.usage.total_tokens == sum(
            json.loads(line)["response"]["body"]["usage"]["total_tokens"] for line in lines
        )

    def key(self, project: str) -> str:
        return self.one.cli("keys", "create", "--project", project).stdout.strip()

    @property
    def wrong_keys(self) -> int:
        """Of one address in a minute, before 429."""
        return Settings().wrong_keys_per_minute

    def past(self, project: str, count: int) -> list[str]:
        """Old batches, whose input is gone; the oldest first."""
        db = Database(self.shared.database)
        with db.write() as session:
            owner = keys.ensure_project(session, project)
            common = {"project_id": owner.id, "kind": ENDPOINTS[CHAT], "endpoint": CHAT, "payload": {}}
            jobs = [
                Job(id=new_id("batch_"), created_at=1_700_000_000 + n, deadline=now() + 3600, **common)
                for n in range(count)
            ]
            for job in jobs:
                ledger.submit(session, job, actor="test")
        db.close()
        return [job.id for job in jobs]

    def asked(self, words: str) -> int:
        return sum(words in prompt for prompt in prompts(self.engine.log))


_ASLEEP = """
  acme/asleep:
    source: {urls: ["http://127.0.0.1:9/v1"]}
    engine: http
    queue: gpu.asleep
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("distributed")
    entering = ExitStack()
    try:
        shared = entering.enter_context(servers(folder))
        weaviate = Weaviate(folder / "weaviate")
        entering.callback(weaviate.close)
        weaviate.start()
    except Exception as error:  # noqa: BLE001 (whatever keeps one from starting: it is not here)
        entering.close()
        need("one of PostgreSQL, RabbitMQ, S3 and Weaviate", error)
    try:
        with StubEngine(folder, MODEL, delay_ms=60) as engine, StubEngine(folder, EMBED_MODEL) as embedder:
            given = {**shared.variables, "NIGHTMILL_VECTORS_URL": weaviate.url}
            hosts = []
            for name in ("one", "two"):
                (folder / name).mkdir()
                hosts.append(System(folder / name, engine_url=engine.url, embed_url=embedder.url, **given))
                with (folder / name / "models.yaml").open("a") as file:
                    file.write(_ASLEEP)
            try:
                for host in hosts:
                    host.start()
                yield Cluster(shared, hosts[0], hosts[1], engine)
            finally:
                for host in hosts:
                    host.destroy()
    finally:
        entering.close()


def test_two_hosts_share_batch_without_repeated_requests(cluster: Cluster, tmp_path: Path) -> None:
    batch = cluster.submit(tmp_path, 1500, "peace")

    cluster.finish(batch, 1500)

    assert cluster.asked("peace") == 1500
    workers = json.loads(cluster.one.cli("workers", "--json").stdout)["workers"]
    assert sum("gpu.generate" in worker["queues"] for worker in workers) == 2


def test_a_webhook_comes_whichever_host_sends_it(cluster: Cluster, tmp_path: Path) -> None:
    with Receiver() as receiver:
        made = cluster.client(cluster.two).webhooks.create(
            name="w", url=receiver.url(), event_types=["batch.completed"]
        )
        cluster.finish(cluster.submit(tmp_path, 10, "hook"), 10)
        eventually(lambda: receiver.of("ok"), 30, "the webhook has come")
        told = receiver.of("ok")[0].verify(str(made.signing_secret))

    assert told["type"] == "batch.completed"


@pytest.mark.soak
def test_sdk_suite_finds_the_same_there(cluster: Cluster) -> None:
    """All that `tests.sdk` checks of one server but fine-tuning, through the second host."""
    with Receiver() as receiver, standing_before(cluster.two.url, receiver) as front:
        facts = {
            "sdk": "distributed",
            "url": cluster.two.url,
            "front": front.url,
            "receiver": receiver.url("ok"),
            "key": cluster.key("suite"),
            "past_key": cluster.key("past"),
            "past": cluster.past("past", 260),
            "model": MODEL,
            "alias": EMBED_ALIAS,
            "asleep": "acme/asleep",
            "embed_model": MODEL,  # the stub gives vectors too
            "counts": False,  # but its tokenizer is its own
            "wrong_keys": cluster.wrong_keys,
        }
        words = [sys.executable, "tests/sdk/suite.py", json.dumps(facts)]
        done = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True, timeout=600)
    checks = [json.loads(line) for line in done.stdout.splitlines()[1:]]

    assert {one["check"]: one["detail"] for one in checks if not one["ok"]} == {}
    trained = CHECKS.index("a fine-tuning job is created, retrieved and listed")  # from here on: of rows of a training
    assert [one["check"] for one in checks] == list(CHECKS[:trained])


def test_a_broker_that_dies_and_comes_back_costs_nothing(cluster: Cluster, tmp_path: Path) -> None:
    batch = cluster.begin(tmp_path, 1500, "rabbit")

    cluster.shared.rabbit.kill()
    queued = cluster.submit(tmp_path, 100, "meanwhile")
    pause(3)
    cluster.shared.rabbit.start()

    cluster.finish(batch, 1500)
    cluster.finish(queued, 100)
    assert (cluster.asked("rabbit"), cluster.asked("meanwhile")) == (1500, 100)


def test_a_database_that_dies_and_comes_back_loses_nothing(cluster: Cluster, tmp_path: Path) -> None:
    batch = cluster.begin(tmp_path, 1500, "elephant")

    cluster.shared.postgres.kill()
    pause(2)
    cluster.shared.postgres.start()

    cluster.finish(batch, 1500)
    assert cluster.asked("elephant") <= 1500 + 2 * LOST_AT_ONCE


def test_short_storage_outage_loses_no_result(cluster: Cluster, tmp_path: Path) -> None:
    batch = cluster.begin(tmp_path, 1500, "bucket")

    cluster.shared.s3.kill()
    pause(4)
    cluster.shared.s3.start()

    cluster.finish(batch, 1500)
    assert cluster.asked("bucket") <= 1500 + 2 * LOST_AT_ONCE


def test_another_host_takes_over_the_work_of_a_dead_host(cluster: Cluster, tmp_path: Path) -> None:
    """Last of all: the second host is not started again."""
    batch = cluster.begin(tmp_path, 1500, "host")

    for process in cluster.two.family():
        process.kill()

    cluster.finish(batch, 1500, cluster.one)
    assert cluster.asked("host") <= 1500 + LOST_AT_ONCE
