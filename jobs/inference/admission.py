"""Admit interactive requests: bound what one project, and one queue, may put into Redis.

    waiting:<project>   hash   request ─▶ "bytes queue"    counted while asking:<request> exists and no worker has it
    streams:<project>   hash   stream ─▶ "bytes"           counted while resumable:<stream> or answer:<stream> exists
                                      or "bytes u"         the same; a resumable stream that is unfinished

    shadows:<project>   hash   request ─▶ alias            counted while asking:<request> exists

An entry whose keys have expired does not count, and the next admission removes it. So what a dead process leaves behind
counts no longer than those keys live. The hashes expire too.

A resumable stream lives without a connection. Until it ends, the most that it may hold is counted; then the bytes that
it holds. Unread chunks of other streams, and events of background responses, are counted in blocks.

The second bound is the memory of the Redis or Valkey server:

    0 ──── interactive requests and answers ──── 60 % ──── Celery's messages, at any time ──── maxmemory

Above this share the server counts as full: new interactive requests are refused, and a stream goes on only while its
client reads it. A server without `maxmemory` is never full.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

import redis

from jobs.errors import Overloaded, TooManyRequests
from jobs.inference.interactive import (
    BACKGROUND_SECONDS,
    QUEUE_SECONDS,
    QueuedRequest,
    address,
    answer_key,
    client_key,
    queue_seconds,
    redis_url,
    resumable_key,
    shadows_key,
    streams_key,
    waiting_key,
)
from jobs.settings import Settings

SHARE: Final = 0.6
#: Bytes of the requests in one queue together; a project may have a third of them in all queues.
MAX_WAITING_BYTES: Final = 192 << 20
#: Bytes of a stream in Redis, those to resume from included: a reader who is further behind loses the stream.
MAX_UNREAD_BYTES: Final = 8 << 20
#: The code of every refusal, and the status of `/statusz`.
FULL: Final = "broker_full"
#: Unread bytes of a stream, or bytes of another answer, that are allowed while the server is full.
UNREAD_WHEN_FULL: Final = 256 << 10
_READING_SECONDS: Final = 1.0  # life of a reading
_PROBE_SECONDS: Final = 0.2  # limit for each server in a probe of `/statusz` or `/metrics`
#: The divisor of a queue's bounds for one project, so that other projects still get in.
PART: Final = 3
#: Bytes of a stream that are counted at a time.
BLOCK: Final = 256 << 10
_STREAMS: Final = 1024  # of one project, with those that have ended and can still be read
#: The bytes of all streams of a project, as a multiple of those of its unfinished resumable ones.
_STREAMS_PER_PROJECT: Final = 2
_COUNT_STREAM: Final = f"""
local function count_stream(streams, id, bytes, running, most, seconds)
  local entries, total, unfinished = redis.call('HGETALL', streams), bytes, 0
  for i = 1, #entries, 2 do
    if redis.call('EXISTS', '{resumable_key("")}' .. entries[i], '{answer_key("")}' .. entries[i]) == 0 then
      redis.call('HDEL', streams, entries[i])
    else
      local held, mark = string.match(entries[i + 1], '^(%d+)(.*)$')
      total = total + held
      if mark == ' u' then unfinished = unfinished + 1 end
    end
  end
  if running and unfinished >= running or total > most or #entries >= {2 * _STREAMS} then return 0 end
  if running then redis.call('HSET', streams, id, bytes .. ' u') else redis.call('HINCRBY', streams, id, bytes) end
  if redis.call('TTL', streams) < seconds then redis.call('EXPIRE', streams, seconds) end
  return 1
end
"""
#: Admission in one round trip; a refused request changes nothing.
_ADMIT: Final = f"""{_COUNT_STREAM}
local queue, client_key, resumable, waiting, streams = unpack(KEYS)
local id, raw, description = ARGV[1], ARGV[2], ARGV[3]
local slots, bytes, lease, seconds = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local length = redis.call('LLEN', queue)
if length >= slots then return 'queue' end
if length > 0 and redis.call('MEMORY', 'USAGE', queue, 'SAMPLES', 0) + #raw > bytes then return 'queue' end
local entries, own, total = redis.call('HGETALL', waiting), 0, 0
for i = 1, #entries, 2 do
  if redis.call('EXISTS', '{client_key("")}' .. entries[i]) == 0 then
    redis.call('HDEL', waiting, entries[i])
  else
    local size, name = string.match(entries[i + 1], '^(%d+) (.*)$')
    total = total + tonumber(size)
    if name == queue then own = own + 1 end
  end
end
if own * {PART} >= slots or (total > 0 and (total + #raw) * {PART} > bytes) then return 'project' end
if description ~= '' then
  local full, running, most = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
  if count_stream(streams, id, full + #description, running, most, seconds + lease) == 0 then return 'streams' end
  redis.call('SET', resumable, description, 'EX', lease)
end
redis.call('SET', client_key, '1', 'EX', lease)
redis.call('RPUSH', queue, raw)
redis.call('HSET', waiting, id, #raw .. ' ' .. queue)
for _, key in ipairs({{queue, waiting}}) do
  if redis.call('TTL', key) < seconds then redis.call('EXPIRE', key, seconds) end
end
return ''
"""
#: A shadow takes nothing of what its project's clients may put into Redis, and a third of a queue of its own.
_ADMIT_SHADOW: Final = f"""
local queue, client_key, shadows = unpack(KEYS)
local id, raw, alias = ARGV[1], ARGV[2], ARGV[3]
local limit, slots, bytes, lease, seconds = unpack(ARGV, 4)
local entries, own, total = redis.call('HGETALL', shadows), 0, 0
for i = 1, #entries, 2 do
  if redis.call('EXISTS', '{client_key("")}' .. entries[i]) == 0 then
    redis.call('HDEL', shadows, entries[i])
  else
    total = total + 1
    if entries[i + 1] == alias then own = own + 1 end
  end
end
local length = redis.call('LLEN', queue)
if own >= tonumber(limit) or total * {PART} >= tonumber(slots) or length >= tonumber(slots) then return 0 end
if length > 0 and redis.call('MEMORY', 'USAGE', queue, 'SAMPLES', 0) + #raw > tonumber(bytes) then return 0 end
redis.call('SET', client_key, '1', 'EX', lease)
redis.call('RPUSH', queue, raw)
redis.call('HSET', shadows, id, alias)
for _, key in ipairs({{queue, shadows}}) do
  if redis.call('TTL', key) < tonumber(seconds) then redis.call('EXPIRE', key, seconds) end
end
return 1
"""
_COUNT: Final = f"""{_COUNT_STREAM}
local bytes, most, seconds = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
return count_stream(KEYS[1], ARGV[1], bytes, nil, most, seconds)
"""
_FINISHED: Final = """
local bytes = string.match(redis.call('HGET', KEYS[1], ARGV[1]) or '', '^(%d+) u$')
if bytes then redis.call('HSET', KEYS[1], ARGV[1], math.max(0, bytes + ARGV[2])) end
"""


async def admit(
    server: Any, config: Settings, queue: str, request: QueuedRequest, raw: bytes, resumable: bytes, lease: int
) -> None:
    """Put the packed request `raw` into its queue.

    `resumable` is the packed description of a stream, empty if it cannot be resumed. The client counts as present for
    `lease` seconds.

    Raises Overloaded, TooManyRequests, RedisError.
    """
    tenant, id_ = request.tenant, request.id
    keys = (queue, client_key(id_), resumable_key(id_), waiting_key(tenant), streams_key(tenant))
    bounds = (config.interactive_waiting, MAX_WAITING_BYTES, lease, queue_seconds(request))
    of_streams = (MAX_UNREAD_BYTES, config.interactive_resumable, max_stream_bytes(config))
    refused = await server.eval(_ADMIT, len(keys), *keys, id_, raw, resumable, *bounds, *of_streams)
    if refused == b"queue":
        raise Overloaded
    if refused == b"project":
        raise TooManyRequests("Too many requests of this project, or too many bytes of them, wait to be answered.")
    if refused == b"streams":
        raise TooManyRequests("This project has too many streams that can be resumed. Stop some, or wait.")


async def admit_shadow(
    server: Any, config: Settings, queue: str, request: QueuedRequest, raw: bytes, alias: str, limit: int, lease: int
) -> None:
    """Put the packed request `raw` into the queue of shadows, where fewer than `limit` of the alias are in flight.

    It counts as in flight for `lease` seconds, and longer where it is renewed.

    Raises TooManyRequests, RedisError.
    """
    keys = queue, client_key(request.id), shadows_key(request.tenant)
    bounds = limit, config.interactive_waiting, MAX_WAITING_BYTES, lease, queue_seconds(request)
    if not await server.eval(_ADMIT_SHADOW, len(keys), *keys, request.id, raw, alias, *bounds):
        raise TooManyRequests("Too many requests for the shadow of this alias are in flight.")


async def count_block(server: Any, tenant: str, stream_id: str, limit: int) -> bool:
    """Count BLOCK more bytes of a stream; return False where its project would have more than `limit` bytes.

    Raises RedisError.
    """
    seconds = BACKGROUND_SECONDS + QUEUE_SECONDS
    return bool(await server.eval(_COUNT, 1, streams_key(tenant), stream_id, BLOCK, limit, seconds))


async def count_end(server: Any, request: QueuedRequest, reserved: int, held: int) -> None:
    """Count an ended resumable stream by the bytes that it holds, in place of those `reserved` for it.

    Raises RedisError.
    """
    await server.eval(_FINISHED, 1, streams_key(request.tenant), request.id, held - reserved)


def max_stream_bytes(config: Settings) -> int:
    """Return the bytes that all streams of a project may have in Redis."""
    return _STREAMS_PER_PROJECT * config.interactive_resumable * MAX_UNREAD_BYTES


class Memory(NamedTuple):
    """The memory of a server in bytes; `limit` is 0 where it has no `maxmemory`."""

    used: int
    limit: int

    @property
    def is_full(self) -> bool:
        return self.used > SHARE * self.limit > 0


class MemoryProbe:
    """A probe of an asynchronous client's server; its reading is at most a second old."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._full = False
        self._until = 0.0

    async def is_full(self) -> bool:
        """Return whether the server is full. Raises RedisError, OSError."""
        if time.monotonic() >= self._until:
            self._until = time.monotonic() + _READING_SECONDS  # first: others use the last reading
            with suppress(redis.exceptions.NoPermissionError):  # no INFO: as without `maxmemory`
                self._full = _memory(await self._server.info("memory")).is_full
        return self._full


def read_memory(url: str, timeout: float = _PROBE_SECONDS) -> Memory:
    """Read the memory of the server at `url`; wait at most `timeout` seconds. Raises RedisError."""
    with redis.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout) as server:
        return _memory(server.info("memory"))


def is_any_full(config: Settings) -> bool:
    """Return whether the broker, or the server of interactive requests, is full.

    A server that does not answer is not.
    """
    for url in {redis_url(config), address(config.broker_url)} - {""}:
        with suppress(redis.RedisError):
            if read_memory(url).is_full:
                return True
    return False


def _memory(info: Mapping[str, Any]) -> Memory:
    return Memory(int(info["used_memory"]), int(info.get("maxmemory", 0)))
