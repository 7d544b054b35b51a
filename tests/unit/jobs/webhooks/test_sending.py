"""A webhook has an envelope and a signature, and each behaviour of a receiver has its outcome."""

import asyncio
import json
import os
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address

import psutil
import pytest
from openai import OpenAI
from standardwebhooks import Webhook, WebhookVerificationError

from jobs.clock import now
from jobs.errors import InvalidRequest
from jobs.platform.url_guard import Address
from jobs.settings import Settings
from jobs.webhooks import sending
from jobs.webhooks.tables import Event, WebhookEndpoint
from tests.support.receiver import Receiver

CONFIG = Settings(webhook_allow_private=True, webhook_timeout_seconds=2)
EVENT = Event(
    id="evt_1",
    subject_id="batch_1",
    seq=7,
    project_id="proj_1",
    type="batch.completed",
    data={"id": "batch_1"},
    created_at=1_750_861_210.9,
)


async def post(url: str, secrets: list[str] | None = None, config: Settings = CONFIG) -> sending.AttemptOutcome:
    return await sending.post_once(config, url, secrets or [sending.new_secret()], "wh_1", sending.body(EVENT))


def test_signature_matches_the_known_answer_of_the_official_sdks() -> None:
    content = (
        b'{"id": "evt_685c059ae3a481909bdc86819b066fb6", "object": "event", "created_at": 1750861210,'
        b' "type": "response.completed", "data": {"id": "resp_123"}}'
    )
    secret = "whsec_RdvaYFYUXuIFuEbvZHwMfYFhUf7aMYjYcmM24+Aj40c="

    signature = sending.sign([secret], "wh_685c059ae39c8190af8c71ed1022a24d", 1750861210, content)

    assert signature == "v1,gUAg4R2hWouRZqRQG4uJypNS8YK885G838+EHb4nKBY="


def test_envelope_is_openais() -> None:
    assert json.loads(sending.body(EVENT)) == {
        "id": "evt_1",
        "object": "event",
        "created_at": 1_750_861_210,
        "type": "batch.completed",
        "data": {"id": "batch_1"},
    }


async def test_official_sdk_unwraps_sent_webhook() -> None:
    secret = sending.new_secret()
    with Receiver() as receiver:
        await post(receiver.url(), [secret])

    (request,) = receiver.requests
    event = OpenAI(api_key="-", webhook_secret=secret).webhooks.unwrap(request.body, request.headers)

    assert (event.type, event.id) == ("batch.completed", "evt_1")
    assert event.data.id == "batch_1"  # type: ignore[union-attr]


async def test_both_secrets_verify_signature_during_rotation() -> None:
    old, new, foreign = (sending.new_secret() for _ in range(3))
    with Receiver() as receiver:
        await post(receiver.url(), [new, old])

    (request,) = receiver.requests
    assert request.verify(old) == request.verify(new) == sending.envelope(EVENT)
    with pytest.raises(WebhookVerificationError):
        request.verify(foreign)


@pytest.mark.parametrize(("until", "count"), [(60, 2), (-1, 1), (None, 1)])
def test_old_secret_signs_until_its_time_is_over(until: float | None, count: int) -> None:
    endpoint = WebhookEndpoint(secret="new", old_secret="old", old_secret_until=until and now() + until)

    assert sending.signing_secrets(endpoint, now()) == ("new", "old")[:count]


def test_each_older_secret_signs_until_its_own_time_is_over() -> None:
    at = now()
    endpoint = WebhookEndpoint(secret="new", old_secret="old", old_secret_until=at + 60)
    endpoint.older_secrets = [["older", at + 30], ["oldest", at + 10]]

    signing = [sending.signing_secrets(endpoint, at + seconds) for seconds in (0, 20, 40, 80)]

    assert signing == [("new", "old", "older", "oldest"), ("new", "old", "older"), ("new", "old"), ("new",)]


async def test_request_carries_user_agent_sequence_and_request_id() -> None:
    with Receiver() as receiver:
        async with sending.open_client(CONFIG) as client:
            await sending.post_signed(
                client,
                receiver.url("ok/a?b=c%20d"),
                [sending.new_secret()],
                "wh_1",
                b"{}",
                sequence=7,
                request_id="ticket-4711",
            )

    (request,) = receiver.requests
    assert request.path == "/ok/a?b=c%20d"
    assert request.headers["user-agent"].startswith("Nightmill/")
    assert request.headers["content-type"] == "application/json"
    assert (request.webhook_id, request.headers["nightmill-sequence"]) == ("wh_1", "7")
    assert request.headers["x-request-id"] == "ticket-4711"
    assert abs(int(request.headers["webhook-timestamp"]) - now()) < 5


@pytest.mark.parametrize(
    ("behaviour", "status", "error"),
    [
        ("ok", 200, None),
        ("500", 500, "status 500"),
        ("410", 410, "status 410"),
        ("redirect", 301, "status 301"),
        ("hang", None, "timeout"),
        ("reset", None, "connection closed"),
        ("nonsense", None, "answer not http"),
        ("trickle", 200, None),
        ("huge", 200, None),
        ("bomb", 200, None),
    ],
)
async def test_behaviour_of_a_receiver_becomes_an_outcome(
    behaviour: str, status: int | None, error: str | None
) -> None:
    with Receiver() as receiver:
        outcome = await post(receiver.url(behaviour))

    assert (outcome.status_code, outcome.error, receiver.connections) == (status, error, 1)


async def test_receiver_that_is_not_there_is_an_outcome() -> None:
    with Receiver() as receiver:
        url = receiver.url()

    assert (await post(url)).error == "connection refused"


async def test_answer_is_not_read_beyond_its_cap_nor_unpacked() -> None:
    with Receiver() as receiver:
        await post(receiver.url("bomb"))  # whatever a first post costs
        before = psutil.Process(os.getpid()).memory_info().rss
        for _ in range(10):
            await post(receiver.url("bomb"))
            await post(receiver.url("huge"))
        grown = psutil.Process(os.getpid()).memory_info().rss - before

    assert grown < 40_000_000, "ten of 50 MB unpacked and ten of 10 MB would show"


async def test_connection_is_reused_and_its_closure_causes_no_failure() -> None:
    secrets = [sending.new_secret()]
    with Receiver() as receiver:
        async with sending.open_client(CONFIG) as client:
            for _ in range(5):
                await sending.post_signed(client, receiver.url("ok"), secrets, "wh_1", b"{}")
            kept = receiver.connections
            sly = [await sending.post_signed(client, receiver.url("sly"), secrets, "wh_1", b"{}") for _ in range(20)]

    assert kept == 1
    assert [outcome.error for outcome in sly] == [None] * 20


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1e9", None),
        ("a date in 90 s", 90),
        ("a date 90 s ago", 0),
    ],
)
def test_retry_after_is_read_in_both_its_forms(value: str, seconds: float | None) -> None:
    at = datetime.now(UTC)
    dates = {"a date in 90 s": at + timedelta(seconds=90), "a date 90 s ago": at - timedelta(seconds=90)}

    found = sending._retry_after(format_datetime(dates[value], usegmt=True) if value in dates else value)

    assert found == (seconds if seconds is None else pytest.approx(seconds, abs=15))


async def test_retry_after_of_a_throttling_receiver_is_reported() -> None:
    with Receiver() as receiver:
        outcome = await post(receiver.url("throttle?after=7"))

    assert (outcome.status_code, outcome.retry_after) == (429, 7)


def test_new_secrets_are_distinct_and_conform_to_standard() -> None:
    first, second = sending.new_secret(), sending.new_secret()

    assert first != second
    assert sending.check_secret(first) == first
    assert Webhook(first)


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_c2hvcnQ=", "c2VjcmV0", "whsec_not base64!", "whsec_" + "A" * 400]
)
def test_secret_that_cannot_sign_is_refused(secret: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        sending.check_secret(secret)

    assert caught.value.param == "secret"


async def test_slow_name_server_counts_as_a_timeout_and_delays_no_other_name() -> None:
    def resolve(host: str, port: int) -> list[Address]:
        if host == "slow.example.com":
            time.sleep(4)  # noqa: TID251 (a name server that hangs)
        return [ip_address("127.0.0.1")]

    with Receiver() as receiver:
        async with sending.open_client(CONFIG, resolve=resolve) as client:
            secrets = [sending.new_secret()]
            hanging = [
                asyncio.create_task(
                    sending.post_signed(client, receiver.url(host="slow.example.com"), secrets, "wh_1", b"{}")
                )
                for _ in range(40)
            ]
            await asyncio.sleep(0.1)
            quick = await sending.post_signed(client, receiver.url(host="quick.example.com"), secrets, "wh_2", b"{}")
            slow = await asyncio.gather(*hanging)

    assert quick.status_code == 200
    assert {outcome.error for outcome in slow} == {"timeout"}
