"""The way to RabbitMQ is cut without a word: who publishes notices, and goes on by another connection."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.queues import Queue, Task
from jobs.settings import Settings
from tests.support.proxy import Proxy
from tests.support.servers import Rabbit
from tests.support.services import need
from workers import app
from workers.dispatcher.publisher import BrokerUnavailable, CeleryPublisher

pytestmark = [pytest.mark.verify, pytest.mark.timeout(180), pytest.mark.distributed]


@pytest.fixture
def rabbit(tmp_path: Path) -> Iterator[Rabbit]:
    server = Rabbit(tmp_path / "rabbit")
    try:
        server.start()
    except Exception as error:  # noqa: BLE001 (whatever keeps it from starting: it is not here)
        server.close()
        need("RabbitMQ", error)
    yield server
    server.close()


def test_a_message_into_a_connection_that_is_lost_fails_in_time_and_the_next_is_received(
    rabbit: Rabbit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_RABBIT", {**app._RABBIT, "read_timeout": 1, "write_timeout": 1})
    with Proxy(rabbit.port) as proxy:
        url = rabbit.url.replace(str(rabbit.port), str(proxy.port))
        publisher = CeleryPublisher(Settings(data_dir=tmp_path, broker_url=url))
        publisher.publish(Task.PLAN, Queue.PLAN, ["batch_1"])
        proxy.swallow()
        proxy.carry()

        with pytest.raises(BrokerUnavailable):
            publisher.publish(Task.PLAN, Queue.PLAN, ["batch_1"])
        publisher.publish(Task.PLAN, Queue.PLAN, ["batch_1"])

        assert proxy.carried > 1
