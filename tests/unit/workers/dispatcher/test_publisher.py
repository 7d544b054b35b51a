"""Messages as they reach a broker."""

import pytest
from kombu import Connection

from jobs.settings import Settings
from workers.dispatcher.publisher import BrokerUnavailable, CeleryPublisher


def test_a_model_with_a_queue_of_its_own_is_published_there() -> None:
    publisher = CeleryPublisher(Settings(broker_url="memory://"))

    for n in range(2):
        publisher.publish("run", "a-large-model", ["batch_1", n])

    with Connection("memory://") as broker, broker.channel() as channel:
        messages = [channel.basic_get("a-large-model", no_ack=True) for _ in range(3)]
    assert [message and message.decode()[0] for message in messages] == [["batch_1", 0], ["batch_1", 1], None]


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "redis+socket:///nobody/here.sock", "amqp://127.0.0.1:1//"])
def test_unreachable_broker_raises_broker_unavailable(url: str) -> None:
    publisher = CeleryPublisher(Settings(broker_url=url))

    with pytest.raises(BrokerUnavailable):
        publisher.publish("run", "generate", ["batch_1", 0])
