"""Rate limits, counted on a real Valkey."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis

from jobs.errors import RateLimitReached, StreamsUnavailable
from jobs.inference.client import InferenceClient
from jobs.inference.interactive import rates_key
from jobs.inference.rate_limiter import RateLimiter, Rates, duration
from jobs.settings import Settings
from tests.support.interactive_api import running_broker

PROJECT, MODEL = "proj_1", "tiny"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_broker(tmp_path_factory.mktemp("broker")) as url:
        yield url


@pytest.fixture
def url(broker: str) -> str:
    with redis.Redis.from_url(broker) as server:
        server.flushall()
    return broker


@asynccontextmanager
async def limiter(url: str) -> AsyncIterator[RateLimiter]:
    client = InferenceClient(Settings(streams_url=url))
    try:
        yield client.rates
    finally:
        await client.close()


def rates(rpm: int | None = None, tpm: int | None = None, rpd: int | None = None) -> Rates:
    return Rates(MODEL, rpm, tpm, rpd)


async def test_requests_of_two_processes_at_once_never_pass_the_limit(url: str) -> None:
    async with limiter(url) as one, limiter(url) as other:
        asked = [each.reserve(PROJECT, rates(rpm=10), 1) for each in (one, other) * 20]
        answers = await asyncio.gather(*asked, return_exceptions=True)

    refused = [answer for answer in answers if isinstance(answer, RateLimitReached)]
    assert len(answers) - len(refused) == 10


@pytest.mark.parametrize(
    ("limits", "kind", "words"),
    [
        (
            rates(rpm=2),
            "requests",
            r"requests per min \(RPM\): Limit 2, Used 2, Requested 1\. .* in (30|29\.\d+)s\.",
        ),
        (
            rates(tpm=100),
            "tokens",
            r"tokens per min \(TPM\): Limit 100, Used 80, Requested 40\. .* in (12|11\.\d+)s\.",
        ),
        (
            rates(rpd=2),
            "requests",
            r"requests per day \(RPD\): Limit 2, Used 2, Requested 1\. .* in (12h0m0s|11h59m\d+s)\.",
        ),
    ],
)
async def test_refusal_has_the_time_until_the_request_fits(url: str, limits: Rates, kind: str, words: str) -> None:
    async with limiter(url) as limit:
        for _ in range(2):
            await limit.reserve(PROJECT, limits, 40)
        with pytest.raises(RateLimitReached) as refused:
            await limit.reserve(PROJECT, limits, 40)

    error = refused.value
    assert (error.status, error.type, error.code, error.retryable) == (429, kind, "rate_limit_exceeded", True)
    assert re.search(words, error.message)
    assert 0 < int(error.headers["retry-after-ms"]) <= error.retry_after * 1000  # type: ignore[operator]


async def test_request_above_the_whole_limit_is_never_worth_a_retry(url: str) -> None:
    async with limiter(url) as limit:
        with pytest.raises(RateLimitReached, match="above the limit") as refused:
            await limit.reserve(PROJECT, rates(tpm=100), 101)
        with pytest.raises(RateLimitReached) as none_allowed:
            await limit.reserve(PROJECT, rates(rpm=0), 1)

    for error in (refused.value, none_allowed.value):
        assert (error.retryable, error.retry_after) == (False, None)
        assert "retry-after-ms" not in error.headers


async def test_refused_request_changes_nothing(url: str) -> None:
    key = rates_key(PROJECT, MODEL)
    async with limiter(url) as limit:
        await limit.reserve(PROJECT, rates(rpm=10, tpm=100), 60)
        with redis.Redis.from_url(url) as server:
            before = server.hgetall(key)
            with pytest.raises(RateLimitReached):
                await limit.reserve(PROJECT, rates(rpm=10, tpm=100), 60)
            assert server.hgetall(key) == before


async def test_headers_are_those_of_openai(url: str) -> None:
    async with limiter(url) as limit:
        headers = (await limit.reserve(PROJECT, rates(rpm=60, tpm=6000), 600)).headers()

    assert headers["x-ratelimit-limit-requests"] == "60"
    assert headers["x-ratelimit-remaining-requests"] == "59"
    assert headers["x-ratelimit-reset-requests"] == "1s"
    assert headers["x-ratelimit-limit-tokens"] == headers["x-ratelimit-limit-project-tokens"] == "6000"
    assert headers["x-ratelimit-remaining-tokens"] == "5400"
    assert headers["x-ratelimit-reset-tokens"] == "6s"


async def settled(limit: RateLimiter, url: str) -> float:
    """Return the level of tokens once all that was settled is counted."""
    while limit._settling:
        await asyncio.gather(*limit._settling)
    with redis.Redis.from_url(url) as server:
        return float(server.hget(rates_key(PROJECT, MODEL), "tokens") or 0)


@pytest.mark.parametrize(("used", "least", "most"), [(10, 0, 11), (1000, 998, 1000), (1500, 1498, 1500)])
async def test_tokens_that_were_taken_replace_those_that_were_reserved(
    url: str, used: int, least: float, most: float
) -> None:
    async with limiter(url) as limit:
        reservation = await limit.reserve(PROJECT, rates(tpm=1000), 1000)
        limit.settle(reservation, used)

        assert least <= await settled(limit, url) <= most


async def test_fallen_part_of_a_reservation_is_not_given_back_twice(url: str) -> None:
    async with limiter(url) as limit:
        first = await limit.reserve(PROJECT, rates(tpm=6000), 6000)  # falls by 100 a second
        await asyncio.sleep(0.5)
        await limit.reserve(PROJECT, rates(tpm=6000), 40)
        limit.settle(first, 0)

        assert 40 <= await settled(limit, url) <= 6000 - 0.5 * 100 + 40


async def test_requests_at_once_get_their_own_reservations_back(url: str) -> None:
    async with limiter(url) as limit:
        reservations = [await limit.reserve(PROJECT, rates(tpm=6000), 100) for _ in range(40)]
        await asyncio.sleep(1)  # as many tokens fall as each has reserved
        for reservation in reservations[20:]:
            limit.settle(reservation, 0)

        assert await settled(limit, url) == pytest.approx(2000, abs=100)


@pytest.mark.parametrize(
    ("limits", "used", "seconds"),
    [(rates(tpm=100), 60, 36), (rates(tpm=100), 1000, 600), (rates(tpm=100, rpd=2), 0, 43_200)],
)
async def test_levels_stay_until_zero(url: str, limits: Rates, used: int, seconds: int) -> None:
    async with limiter(url) as limit:
        limit.settle(await limit.reserve(PROJECT, limits, 60), used)
        await settled(limit, url)

    with redis.Redis.from_url(url) as server:
        assert server.ttl(rates_key(PROJECT, MODEL)) == pytest.approx(seconds, abs=3)


async def test_tokens_above_a_reservation_count_after_it_has_fallen(url: str) -> None:
    async with limiter(url) as limit:
        reservation = await limit.reserve(PROJECT, rates(tpm=6000), 10)
        with redis.Redis.from_url(url) as server:
            server.delete(rates_key(PROJECT, MODEL))  # as it expires
        limit.settle(reservation, 6010)
        await settled(limit, url)

        with pytest.raises(RateLimitReached):
            await limit.reserve(PROJECT, rates(tpm=6000), 1000)


async def test_projects_and_models_are_counted_apart(url: str) -> None:
    async with limiter(url) as limit:
        await limit.reserve(PROJECT, rates(rpm=1), 1)
        await limit.reserve("proj_2", rates(rpm=1), 1)
        await limit.reserve(PROJECT, rates(rpm=1)._replace(model="other"), 1)
        with pytest.raises(RateLimitReached):
            await limit.reserve(PROJECT, rates(rpm=1), 1)


async def test_limit_that_cannot_be_read_is_not_passed(tmp_path: Any) -> None:
    async with limiter(f"unix://{tmp_path}/nobody.sock") as limit:
        with pytest.raises(StreamsUnavailable):
            await limit.reserve(PROJECT, rates(rpm=1), 1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.12, "120ms"), (0.9999, "1s"), (1.5, "1.5s"), (60, "1m0s"), (360, "6m0s"), (7200, "2h0m0s")],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text
