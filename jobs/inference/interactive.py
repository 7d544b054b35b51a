"""Questions of clients who wait for the answer, on their way between the API and an engine, over Redis or Valkey.

    API                                        worker of the queue
     │ RPUSH a Question ──▶ interactive:<queue> ──BLPOP──▶│   each goes to one worker, once
     │ SET, renewed ──────▶ asking:<id> ◀──────EXISTS─────│   gone: its client has left, the engine stops
     │ XREAD ◀───────────── answer:<id> ◀──────XADD───────│   taken, alive …, chunk …, end
     │ SET ───────────────▶ resumable:<id>                │   where its client asked to resume: who may, and how
     │ HSET ──────────────▶ waiting:<project> ◀───HDEL────│   what it has in queues: see `jobs.inference.admission`

Nothing of it is kept, not even where nobody ever takes it: a client that gets no answer asks again. So a message that
is lost, with its broker or with its worker, costs a wait and is never run twice. Names have the prefix that Celery's
have.

A client that asked to resume has so many seconds to come back: its `asking` outlives the connection for as long, and
what was answered stays in `answer`.
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
#: What was answered is forgotten after this, should nobody have read it.
ANSWER_SECONDS: Final = 60
#: The events of a response in the background can be read for so long after the last of them,
BACKGROUND_SECONDS: Final = 3600
#: and for so long after its end; later they are written out from what is kept.
TOLD_SECONDS: Final = 300
#: And a line so long after the latest deadline in it.
LINE_SECONDS: Final = 60
PIECE: Final = b"p"  # the field of a stream's entry that has it
#: Before every batch: theirs are small numbers.
PRIORITY: Final = -1_000_000
#: Of what the line of a batch asks of another queue: behind those who wait, and not behind all that its batches have.
LINE_PRIORITY: Final = PRIORITY // 2
AT_ONCE: Final = 256  # pieces in one read: what a process of the API holds of an answer, at most
#: So many pieces that were read stay where a client may come back: more than lie in buffers on the way to it, and
#: more than AT_ONCE, so that a read that is not full has missed nothing.
BEHIND: Final = 4096
#: And at most this part of the bytes that a stream may have in Redis, but never fewer pieces than AT_ONCE.
BEHIND_PART: Final = 4
_SOCKET: Final = "redis+socket://"
_CONNECTIONS: Final = 1 << 16  # each who waits has one: what bounds them is the length of the line


class Question(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request: `body` is its JSON, `deadline` unix seconds after which nobody waits any more.

    `linger`: the seconds for which it goes on without its client, who may come back. Where it is not a client who waits
    but the line of a batch, `priority` says it, and `job_id` whose it is.
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


class Resumable(msgspec.Struct, frozen=True):
    """What is known of a stream that its client may come back to. `shown` is what it takes to show the rest of it;
    `queue` and `model` say who could take it.
    """

    tenant: str
    url: str
    deadline: float
    linger: int
    shown: bytes
    queue: str = ""
    model: str = ""


class Piece(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of an answer.

    `taken`, `alive`: a worker is at it. `chunk`: one event of a stream, as JSON. `end`: the status and, unless it was a
    stream that succeeded, the body; `retry_after` is in seconds. `at` is its place, as whoever reads it is told.
    `late` is no worker's: nothing was answered yet, and somebody wants to be told so.
    """

    kind: Literal["taken", "alive", "chunk", "end", "late"]
    body: bytes = b""
    status: int = 200
    retry_after: float | None = None
    at: str = ""


pack = msgspec.msgpack.encode
unpack_question = msgspec.msgpack.Decoder(Question).decode
unpack_piece = msgspec.msgpack.Decoder(Piece).decode
unpack_resumable = msgspec.msgpack.Decoder(Resumable).decode


def line_of(queue: str) -> str:
    return f"{_PREFIX}interactive:{queue}"


def kept_in_line(question: Question) -> int:
    """Seconds for which its line has to be there, should nobody be left who takes it out again."""
    return max(1, math.ceil(question.deadline - now())) + LINE_SECONDS


def routed(queue: str, priority: int = PRIORITY) -> str:
    """Where requests wait that another queue's worker passes on: for clients, or for lines of batches."""
    return f"{queue}:routed" if priority == PRIORITY else f"{queue}:lines"


def asking(question_id: str) -> str:
    return f"{_PREFIX}asking:{question_id}"


def answer(question_id: str) -> str:
    return f"{_PREFIX}answer:{question_id}"


def resumable(question_id: str) -> str:
    return f"{_PREFIX}resumable:{question_id}"


def project_waiting(tenant: str) -> str:
    """Name the hash of a project's waiting requests."""
    return f"{_PREFIX}waiting:{tenant}"


def project_streams(tenant: str) -> str:
    """Name the hash of a project's streams that outlive their connections."""
    return f"{_PREFIX}streams:{tenant}"


def redis_url(config: Settings) -> str:
    """The server in force, as redis-py names it; empty where there is none (RabbitMQ alone)."""
    return address(config.streams_url or config.broker_url or f"{_SOCKET}{config.data_dir.absolute() / 'valkey.sock'}")


def address(url: str) -> str:
    """A URL as Celery takes it, as redis-py does; empty for another kind of server."""
    if url.startswith(_SOCKET):
        return f"unix://{unquote(url.removeprefix(_SOCKET))}"
    return re.sub("^valkey", "redis", url) if url.startswith(("redis", "valkey", "unix:")) else ""


def connect(url: str) -> Any:
    """A client for this event loop. Connections are made when they are needed; a read may block as long as it says."""
    return redis.Redis.from_url(url, socket_connect_timeout=3, protocol=2, max_connections=_CONNECTIONS)
