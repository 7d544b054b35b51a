"""Count the interactive requests of a project for a model in Redis, for all processes of the API.

    reserve: 1 request, its estimated tokens ──▶ the answer ──▶ settle: the tokens that it took

A limit is a level that rises with each request and falls steadily, by the whole limit in its window: 60 requests a
minute are one a second on average, and 60 at once after a minute without any. A request that would raise a level above
its limit is refused, and changes nothing. Levels fall by Redis's clock, whatever those of the processes say, and stay
there until they have fallen to nothing.

Where Redis does not answer, the request is refused with 503: a limit that cannot be read is not passed.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from redis.exceptions import RedisError
from sqlalchemy.orm import Session

from jobs.errors import RateLimitReached, StreamsUnavailable
from jobs.inference.interactive import rates_key
from jobs.usage.tables import RateLimit

log = logging.getLogger(__name__)

_WINDOWS: Final = (60, 60, 86_400)  # seconds of requests, tokens, requests of a day
#: Type of the error, unit, short name, of each limit.
_WORDS: Final[tuple[tuple[Literal["requests", "tokens"], str, str], ...]] = (
    ("requests", "requests per min", "RPM"),
    ("tokens", "tokens per min", "TPM"),
    ("requests", "requests per day", "RPD"),
)
_NOW: Final = "local time = redis.call('TIME'); local at = time[1] + time[2] / 1000000"
_RESERVE: Final = f"""{_NOW}
local fields, windows, costs = {{'requests', 'tokens', 'day'}}, {{60, 60, 86400}}, {{1, tonumber(ARGV[1]), 1}}
local stored = redis.call('HMGET', KEYS[1], 'at', unpack(fields))
local elapsed = math.max(0, at - (tonumber(stored[1]) or at))
local levels, refused = {{}}, 0
for i = 1, 3 do
  local limit = tonumber(ARGV[i + 1])
  levels[i] = 0
  if limit then
    levels[i] = math.max(0, (tonumber(stored[i + 1]) or 0) - elapsed * limit / windows[i])
    if refused == 0 and levels[i] + costs[i] > limit + 0.000001 then refused = i end
  end
end
if refused == 0 then
  local seconds = 0
  for i = 1, 3 do
    local limit = tonumber(ARGV[i + 1])
    if limit then
      levels[i] = levels[i] + costs[i]
      seconds = math.max(seconds, math.ceil(levels[i] * windows[i] / limit))
    end
    redis.call('HSET', KEYS[1], fields[i], string.format('%.6f', levels[i]))
  end
  redis.call('HSET', KEYS[1], 'at', string.format('%.6f', at))
  redis.call('EXPIRE', KEYS[1], seconds + 1)
end
local answer = {{refused, string.format('%.6f', at)}}
for i = 1, 3 do answer[i + 2] = string.format('%.6f', levels[i]) end
return answer
"""
#: No more is given back than is left of the level that the reservation made: the rest has fallen already.
_SETTLE: Final = f"""{_NOW}
local level = tonumber(redis.call('HGET', KEYS[1], 'tokens'))
if not level then  -- all levels have fallen to nothing since
  level = 0
  redis.call('HSET', KEYS[1], 'at', ARGV[3])
end
local limit, change, began, reached = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local rest = math.max(0, reached - math.max(0, at - began) * limit / 60)
level = math.max(0, level + math.max(change, -rest))
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', level))
redis.call('EXPIRE', KEYS[1], math.max(redis.call('TTL', KEYS[1]), math.ceil(level * 60 / limit) + 1))
"""


class Rates(NamedTuple):
    """The limits of a project's interactive requests for `model`; null is no limit."""

    model: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    requests_per_day: int | None


def rates_of(session: Session, project_id: str, model: str) -> Rates | None:
    """Return the limits of a project's interactive requests for a model; None where it has none."""
    row = session.get(RateLimit, (project_id, model))
    if row is None:
        return None
    rates = Rates(model, row.requests_per_minute, row.tokens_per_minute, row.requests_per_day)
    return rates if any(limit is not None for limit in rates[1:]) else None


@dataclass(frozen=True, slots=True)
class RateReservation:
    """An admitted request. `levels` are those of its limits after it, `at` is the time on Redis's clock."""

    rates: Rates
    key: str
    tokens: int
    at: float
    levels: tuple[float, ...]

    def headers(self) -> dict[str, str]:
        """Return OpenAI's headers of the limits."""
        return _headers(self.rates, self.levels)


class RateLimiter:
    """The rate limits of one process. `server` returns the Redis client."""

    def __init__(self, server: Callable[[], Any]) -> None:
        self._server = server
        self._settling = set[asyncio.Task[None]]()

    async def reserve(self, project_id: str, rates: Rates, tokens: int) -> RateReservation:
        """Count a request of so many tokens. Raises RateLimitReached, StreamsUnavailable."""
        key = rates_key(project_id, rates.model)
        limits = ["" if limit is None else limit for limit in rates[1:]]
        try:
            refused, at, *levels = await self._server().eval(_RESERVE, 1, key, tokens, *limits)
        except (RedisError, OSError) as error:
            raise StreamsUnavailable from error
        values = tuple(map(float, levels))
        if refused:
            raise _refusal(rates, values, refused - 1, tokens)
        return RateReservation(rates, key, tokens, float(at), values)

    def settle(self, reservation: RateReservation, used: int) -> None:
        """Count the tokens that a request took in place of those that were reserved, without waiting for Redis."""
        if reservation.rates.tokens_per_minute and used != reservation.tokens:
            task = asyncio.create_task(self._settle(reservation, used))
            self._settling.add(task)
            task.add_done_callback(self._settling.discard)

    async def _settle(self, reservation: RateReservation, used: int) -> None:
        limit, change = reservation.rates.tokens_per_minute, used - reservation.tokens
        began, reached = f"{reservation.at:.6f}", reservation.levels[1]
        try:
            await self._server().eval(_SETTLE, 1, reservation.key, limit, change, began, reached)
        except (RedisError, OSError, StreamsUnavailable) as error:  # the reservation falls by itself
            log.warning("rate_not_settled", extra={"error": str(error)})


def _refusal(rates: Rates, levels: tuple[float, ...], index: int, tokens: int) -> RateLimitReached:
    limit, level, cost = rates[index + 1], levels[index], (1, tokens, 1)[index]
    assert isinstance(limit, int)
    kind, unit, short = _WORDS[index]
    start = f"Rate limit reached for {rates.model} in this project on {unit} ({short}): Limit {limit}, "
    amounts = f"Used {math.ceil(level)}, Requested {cost}."
    wait = (level + cost - limit) * _WINDOWS[index] / limit if cost <= limit else None
    advice = f"Please try again in {duration(wait)}." if wait is not None else "This request alone is above the limit."
    return RateLimitReached(f"{start}{amounts} {advice}", kind=kind, wait=wait, headers=_headers(rates, levels))


def _headers(rates: Rates, levels: tuple[float, ...]) -> dict[str, str]:
    """Return OpenAI's headers. Those of requests are of the day where a minute has no limit."""
    day = rates.requests_per_minute is None
    requests = (rates.requests_per_day, levels[2], 86_400) if day else (rates.requests_per_minute, levels[0], 60)
    tokens = (rates.tokens_per_minute, levels[1], 60)
    headers: dict[str, str] = {}
    for name, (limit, level, window) in (("requests", requests), ("tokens", tokens), ("project-tokens", tokens)):
        if limit is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(limit - level)))
            headers[f"x-ratelimit-reset-{name}"] = duration(level * window / limit if limit else 0.0)
    return headers


def duration(seconds: float) -> str:
    """Return a time as OpenAI's headers have it: `120ms`, `1.5s`, `6m0s`, `1h0m0s`."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"
