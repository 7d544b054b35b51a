"""Interactive requests on their way between the API and an engine, over Redis or Valkey.

    API                                        worker of the queue
     │ RPUSH a request ───▶ interactive:<queue> ──BLPOP──▶│   each goes to one worker, once
     │ SET, renewed ──────▶ asking:<id> ◀──────EXISTS─────│   gone: its client has left, the engine stops
     │ XREAD ◀───────────── answer:<id> ◀──────XADD───────│   taken, alive …, chunk …, end
     │ SET ───────────────▶ resumable:<id>                │   where the client asked to resume: who may, and how
     │ HSET ──────────────▶ waiting:<project> ◀───HDEL────│   what it has in queues: see `jobs.inference.admission`

No request is stored, not even one that no worker takes: a client without an answer retries. A message that is lost
with its broker or its worker costs a wait, and no request runs twice. The keys have the same prefix as Celery's.

A client that asked to resume has some seconds to do so: its key `asking` outlives the connection by that time, and
the entries of the answer stay in `answer`.
"""

import math
import re
from typing import Any, Final, Literal
from urllib.parse import unquote

import msgspec
import redis.asyncio as redis

from jobs.clock import now
from jobs.settings import Settings

_PREFIX: Final = "nightmill:"
#: Life of an answer that is not read.
ANSWER_SECONDS: Final = 60
#: Life of the events of a background response after the last event,
BACKGROUND_SECONDS: Final = 3600
#: and after the end of the response. Later events are written out from the stored response.
ENDED_SECONDS: Final = 300
#: Life of a queue after the latest deadline of its requests.
QUEUE_SECONDS: Final = 60
ENTRY_FIELD: Final = b"p"  # of a Redis stream's entry: the packed `AnswerEntry`
#: Before the priority of every batch, which is a small number.
PRIORITY: Final = -1_000_000
#: Of requests that a line of a batch sends to another queue: behind clients, and before the batches of that queue.
LINE_PRIORITY: Final = PRIORITY // 2
#: Of requests for the shadow of an alias: behind every batch.
SHADOW_PRIORITY: Final = 1_000_000
#: Of requests by their service tier; those of `flex` run with batches.
TIER_PRIORITIES: Final = {"priority": PRIORITY - 1, "default": PRIORITY, "flex": 0}
AT_ONCE: Final = 256  # entries in one read: the most that a process of the API holds of an answer
#: Entries that stay after they were read, in a stream that can be resumed: more than the buffers on the way to the
#: client hold, and more than AT_ONCE, so that a read that is not full has missed nothing.
BEHIND: Final = 4096
#: They have at most this part of the bytes that a stream may have in Redis, and are at least AT_ONCE entries.
BEHIND_PART: Final = 4
_SOCKET: Final = "redis+socket://"
_CONNECTIONS: Final = 1 << 16  # one for each client that waits: the length of the queue is the bound


class QueuedRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request as it waits in its queue. `body` is its JSON; `deadline` is in unix seconds.

    `linger` is the time in seconds that the request goes on without its client, who may resume it. A request of a line
    of a batch has the priority LINE_PRIORITY, and the `job_id` of the batch. `request_id` is the `x-request-id` of the
    request to the API that it belongs to. `key_id` and `tier`, the service tier, are those of its usage.
    """

    id: str
    url: str
    body: bytes
    tenant: str
    deadline: float
    stream: bool = False
    linger: int = 0
    priority: int = PRIORITY
    job_id: str | None = None
    request_id: str | None = None
    key_id: str = ""
    tier: str = "default"


class Resumable(msgspec.Struct, frozen=True):
    """The description of a stream that its client may resume.

    `shown` is what a process of the API needs to show the rest; a worker of `queue` that has `model` may take the
    request.
    """

    tenant: str
    url: str
    deadline: float
    linger: int
    shown: bytes
    queue: str = ""
    model: str = ""


class AnswerEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """An entry of the Redis stream of an answer.

    `taken` and `alive` say that a worker has the request. `chunk` is one event of a stream, as JSON. `end` has the
    status and, unless a stream succeeded, the body; `retry_after` is in seconds. `usage` has the tokens of the input,
    those of them that were cached, of the output, and those of reasoning among these. `late` is made by the reader
    while no chunk has come. `position` is set by the reader: `<request id>/<entry id>`.
    """

    kind: Literal["taken", "alive", "chunk", "end", "late"]
    body: bytes = b""
    status: int = 200
    retry_after: float | None = None
    position: str = ""
    usage: tuple[int, ...] = ()


pack = msgspec.msgpack.encode
unpack_request = msgspec.msgpack.Decoder(QueuedRequest).decode
unpack_entry = msgspec.msgpack.Decoder(AnswerEntry).decode
unpack_resumable = msgspec.msgpack.Decoder(Resumable).decode


def queue_key(queue: str) -> str:
    return f"{_PREFIX}interactive:{queue}"


def queue_seconds(request: QueuedRequest) -> int:
    """Return the lifetime of a queue, in seconds, so that a request that no worker takes expires with it."""
    return max(1, math.ceil(request.deadline - now())) + QUEUE_SECONDS


def routed_queue(queue: str, priority: int = PRIORITY) -> str:
    """Return the queue of requests that workers of other queues send, for clients or for lines of batches."""
    return f"{queue}:routed_queue" if priority == PRIORITY else f"{queue}:lines"


def shadow_queue(queue: str) -> str:
    """Return the queue of requests for the shadows of aliases."""
    return f"{queue}:shadows"


def client_key(request_id: str) -> str:
    return f"{_PREFIX}asking:{request_id}"


def answer_key(request_id: str) -> str:
    return f"{_PREFIX}answer:{request_id}"


def resumable_key(request_id: str) -> str:
    return f"{_PREFIX}resumable:{request_id}"


def waiting_key(tenant: str) -> str:
    """Name the hash of a project's waiting requests."""
    return f"{_PREFIX}waiting:{tenant}"


def shadows_key(tenant: str) -> str:
    """Name the hash of a project's requests for shadows."""
    return f"{_PREFIX}shadows:{tenant}"


def streams_key(tenant: str) -> str:
    """Name the hash of a project's streams that outlive their connections."""
    return f"{_PREFIX}streams:{tenant}"


def rates_key(tenant: str, model: str) -> str:
    """Name the hash of what a project has asked of a model: see `jobs.inference.rate_limiter`."""
    return f"{_PREFIX}rates:{tenant}:{model}"


def redis_url(config: Settings) -> str:
    """Return the URL of the Redis server, as redis-py takes it; empty where there is none (RabbitMQ alone)."""
    return address(config.streams_url or config.broker_url or f"{_SOCKET}{config.data_dir.absolute() / 'valkey.sock'}")


def address(url: str) -> str:
    """Translate a URL of Celery's into one of redis-py's; return an empty one for another kind of server."""
    if url.startswith(_SOCKET):
        return f"unix://{unquote(url.removeprefix(_SOCKET))}"
    return re.sub("^valkey", "redis", url) if url.startswith(("redis", "valkey", "unix:")) else ""


def connect(url: str) -> Any:
    """Return a Redis client for this event loop. Connections are made on demand, and reads have no timeout."""
    return redis.Redis.from_url(url, socket_connect_timeout=3, protocol=2, max_connections=_CONNECTIONS)
