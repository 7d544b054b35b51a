"""The guard: what may be called, what may not, and that the connection goes where the check looked."""

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from jobs.errors import InvalidRequest, LookupsBusy
from jobs.platform import url_guard
from jobs.platform.url_guard import Address, AddressRefused, GuardedResolver, Lookups, check_url
from jobs.settings import Settings
from jobs.webhooks import sending
from tests.support.receiver import Receiver, certificate

PUBLIC = ip_address("93.184.215.14")
OPEN = Settings(webhook_allow_private=True, webhook_timeout_seconds=3)
CLOSED = Settings(webhook_allow_private=False, webhook_timeout_seconds=3)


def answers(*texts: str) -> url_guard.Resolve:
    return lambda host, port: [ip_address(text) for text in texts]


def no_answer(host: str, port: int) -> Sequence[Address]:
    raise socket.gaierror(socket.EAI_NONAME, "no such name")


REFUSED = [
    "https://127.0.0.1/",
    "https://0/",
    "https://0.0.0.0/",
    "https://0x7f000001/",
    "https://0x7f.0.0.1/",
    "https://0177.0.0.1/",
    "https://2130706433/",
    "https://127.1/",
    "https://127.0.1/",
    "https://127.0.0.1./",
    "https://[::]/",
    "https://[::1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[::127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[64:ff9b::10.0.0.1]/",
    "https://[64:ff9b:1::1]/",
    "https://[2002:7f00:1::]/",
    "https://[2001:0:7f00:1::]/",
    "https://[2001:db8::1]/",
    "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/",
    "https://[fd00::]/",
    "https://[fc00::1]/",
    "https://[fec0::1]/",
    "https://[ff02::1]/",
    "https://169.254.169.254/latest/meta-data/",
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://172.31.255.255/",
    "https://192.168.1.1/",
    "https://100.64.0.1/",
    "https://192.0.0.192/",
    "https://168.63.129.16/",
    "https://198.18.0.1/",
    "https://224.0.0.1/",
    "https://240.0.0.1/",
    "https://255.255.255.255/",
    "https://localhost/",
    "https://localhost./",
    "https://LOCALHOST/",
    "https://a.localhost/",
    "https://printer.local/",
    "https://metadata.google.internal/",
    "https://redis/",
    f"https://{socket.gethostname()}/",
    "https://user@example.com/",
    "https://user:pass@example.com/",
    "https://@example.com/",
    "https://example.com@127.0.0.1/",
    "http://good#@127.0.0.1",
    "https://good.example#@127.0.0.1/",
    "https://good.example\\@127.0.0.1/",
    "https://127.0.0.1\\.good.example/",
    "https://example.com./",
    "https://example..com/",
    "https://-example.com/",
    "https://exa mple.com/",
    "https://example.com/\r\nhost: 127.0.0.1",
    "https://example.com/\t",
    " https://example.com/",
    "https://example.com/\x00",
    "https://\uff11\uff12\uff17.0.0.1/",
    "https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/",
    "https://ex\u0430mple.com/",
    "https://example.com:22/",
    "https://example.com:6379/",
    "https://example.com:5432/",
    "https://example.com:0/",
    "https://example.com:65536/",
    "https://example.com:https/",
    "https://example.com:-1/",
    "http://example.com/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "ftp://example.com/",
    "//example.com/",
    "https:example.com",
    "https://",
    "https:///path",
    "https://[::1",
    "https://[]/",
    "https://[v1.x]/",
    "",
    "https://example.com/" + "a" * 3000,
]


@pytest.mark.parametrize("url", REFUSED)
def test_url_that_could_reach_inside_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_url(url, allow_private=False, resolve=answers(str(PUBLIC)))

    assert (caught.value.param, caught.value.code, caught.value.status) == ("url", "invalid_url", 400)


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "query"),
    [
        ("https://example.com", "example.com", 443, "/", ""),
        ("https://EXAMPLE.com/Hook?a=b%20c", "example.com", 443, "/Hook", "a=b%20c"),
        ("https://hooks.example.co.uk:8443/x", "hooks.example.co.uk", 8443, "/x", ""),
        ("https://xn--exmple-cua.com/", "xn--exmple-cua.com", 443, "/", ""),
        ("https://93.184.215.14/", "93.184.215.14", 443, "/", ""),
        ("https://[2606:4700:4700::1111]/", "2606:4700:4700::1111", 443, "/", ""),
    ],
)
def test_public_https_url_is_taken_apart(url: str, host: str, port: int, path: str, query: str) -> None:
    target = check_url(url, allow_private=False, resolve=answers(str(PUBLIC)))

    assert (target.host, target.port, target.path, target.query) == (host, port, path, query)
    assert len(target.addresses) == 1


@pytest.mark.parametrize("inside", ["127.0.0.1", "10.1.2.3", "::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "fe80::1"])
def test_name_with_private_address_among_public_addresses_is_refused(inside: str) -> None:
    with pytest.raises(InvalidRequest):
        check_url("https://example.com/", allow_private=False, resolve=answers(str(PUBLIC), inside))


def test_address_of_an_own_interface_is_refused_although_it_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_guard, "_public", lambda address: True)  # loopback stands in for a public interface

    assert not url_guard.permitted(ip_address("127.0.0.1"), allow_private=False)
    assert url_guard.permitted(PUBLIC, allow_private=False)


def test_name_without_an_answer_is_left_to_the_attempt() -> None:
    assert check_url("https://example.com/", allow_private=False, resolve=no_answer).addresses == ()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9000/", "http://localhost:8080/x", "https://receiver/", "http://[::1]:81/"]
)
def test_setting_allows_private_addresses_plain_http_and_any_port(url: str) -> None:
    assert check_url(url, allow_private=True, resolve=answers("127.0.0.1")).addresses


@pytest.mark.parametrize(
    "host",
    [
        *("169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "224.0.0.1", "[ff02::1]", "[::169.254.169.254]"),
        *("[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::a9fe:a9fe]", "[::ffff:0:a9fe:a9fe]", "[2002:a9fe:a9fe::]"),
        *("[2001:0:a9fe:a9fe::1]", "[2001:0:5db8:d70e::5601:5601]", "[fd00:ec2::254]", "[fd20:ce::254]"),
        *("100.100.100.200", "168.63.129.16", "192.0.0.192", "[::ffff:168.63.129.16]", "[64:ff9b::c000:c0]"),
    ],
)
def test_metadata_service_and_multicast_are_refused_even_then(host: str) -> None:
    with pytest.raises(InvalidRequest):
        check_url(f"http://{host}/", allow_private=True)


@pytest.mark.parametrize("host", ["[64:ff9b::a00:1]", "[2002:a00:1::]", "[fd00::1]", "[::1]", "100.100.100.201"])
def test_other_private_addresses_are_allowed_then(host: str) -> None:
    assert check_url(f"http://{host}/", allow_private=True).addresses


class Silent:
    """A name server that answers nobody until it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.begun = threading.Event()
        self.answer = threading.Event()

    def __call__(self, host: str, port: int) -> Sequence[Address]:
        self.asked += 1
        self.begun.set()
        self.answer.wait(30)
        return [PUBLIC]


def test_lookups_on_hanging_name_server_are_limited_per_project() -> None:
    silent, lookups = Silent(), Lookups(5, 2)

    def check(project_id: str) -> int:
        try:
            check_url(
                "https://slow.example.com/",
                allow_private=False,
                project_id=project_id,
                resolve=silent,
                lookups=lookups,
                patience=0.01,
            )
        except LookupsBusy as busy:
            return busy.status
        return 200

    try:
        assert [check("a") for _ in range(4)] == [200, 200, 503, 503]
        assert [check("b") for _ in range(3)] == [200, 200, 503]
        assert [check(name) for name in "cde"] == [200, 503, 503]
        assert silent.asked == 5
    finally:
        silent.answer.set()


def test_each_thread_of_a_project_may_look_a_name_up() -> None:
    silent, threads = Silent(), Settings().project_threads

    found = [url_guard.CHECKS.start(silent, "slow.example.com", 443, "p") for _ in range(threads)]
    silent.answer.set()

    assert [one.result(30) if one else None for one in found] == [[PUBLIC]] * threads


def test_a_look_up_that_cannot_start_holds_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    lookups = Lookups(1, 1)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            lookups.start(no_answer, "a.example.com", 443, "p")

    assert lookups.start(no_answer, "a.example.com", 443, "p") is not None


async def test_an_attempt_waits_for_its_turn_and_another_project_does_not() -> None:
    silent, lookups = Silent(), Lookups(10, 1)
    slow = GuardedResolver(allow_private=False, resolve=silent, lookups=lookups)
    quick = GuardedResolver(allow_private=False, resolve=answers(str(PUBLIC)), lookups=lookups)

    with url_guard.on_behalf_of("a"):
        first = asyncio.create_task(slow.resolve("one.example.com"))
        second = asyncio.create_task(slow.resolve("two.example.com"))
    try:
        with url_guard.on_behalf_of("b"):
            assert await quick.resolve("three.example.com")
        assert await asyncio.to_thread(silent.begun.wait, 30)
        assert silent.asked == 1
    finally:
        silent.answer.set()
    assert await first
    assert await second
    assert silent.asked == 2


async def test_resolver_refuses_a_name_with_any_private_address() -> None:
    resolver = GuardedResolver(allow_private=False, resolve=answers(str(PUBLIC), "127.0.0.1"))

    with pytest.raises(AddressRefused):
        await resolver.resolve("example.com", 443)


async def test_resolver_gives_the_addresses_that_it_checked() -> None:
    resolver = GuardedResolver(allow_private=False, resolve=answers(str(PUBLIC), "2606:4700:4700::1111"))

    found = await resolver.resolve("example.com", 443)

    assert [(one["host"], one["family"]) for one in found] == [
        (str(PUBLIC), socket.AF_INET),
        ("2606:4700:4700::1111", socket.AF_INET6),
    ]


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """Listen inside, on a port that the guard allows: only the address can refuse the request."""
    with Receiver() as receiver:
        monkeypatch.setattr(url_guard, "PORTS", frozenset({443, receiver.port}))
        yield receiver


async def send(url: str, config: Settings = CLOSED, **options: object) -> sending.AttemptOutcome:
    async with sending.open_client(config, **options) as client:  # type: ignore[arg-type]
        return await sending.post_signed(client, url, [sending.new_secret()], "wh_1", b"{}")


INSIDE = ["127.0.0.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "localhost", "127.1", "2130706433", "0x7f000001"]


@pytest.mark.parametrize("host", INSIDE)
async def test_attempt_refuses_internal_host_even_without_check_at_creation(canary: Receiver, host: str) -> None:
    outcome = await send(f"https://{host}:{canary.port}/")

    assert (outcome.delivered, outcome.error, canary.connections) == (False, "url refused", 0)


async def test_canary_would_be_reached_without_the_guard(canary: Receiver) -> None:
    outcome = await send(canary.url("ok"), OPEN)

    assert (outcome.status_code, canary.connections) == (200, 1)


async def test_rebinding_name_is_refused_at_the_attempt(canary: Receiver) -> None:
    lookups = iter([[PUBLIC], [ip_address("127.0.0.1")], [ip_address("127.0.0.1")]])
    url = f"https://rebind.example.com:{canary.port}/"
    check_url(url, allow_private=False, resolve=lambda host, port: next(lookups))

    outcome = await send(url, resolve=lambda host, port: next(lookups))

    assert (outcome.error, canary.connections) == ("address not public", 0)
    assert len(list(lookups)) == 1, "an attempt resolves once: there is nothing between check and connection"


async def test_rebinding_between_attempts_is_refused_at_the_second(tmp_path: Path) -> None:
    lookups = iter([[ip_address("127.0.0.1")], [ip_address("169.254.169.254")]])
    with Receiver() as receiver:
        async with sending.open_client(OPEN, resolve=lambda host, port: next(lookups)) as client:
            url = receiver.url("sly", host="rebind.example.com")
            first = await sending.post_signed(client, url, [sending.new_secret()], "wh_1", b"{}")
            second = await sending.post_signed(client, url, [sending.new_secret()], "wh_1", b"{}")

    assert (first.status_code, second.error, receiver.connections) == (200, "address not public", 1)


@pytest.mark.parametrize("target", ["ok", "redirect"])
async def test_redirect_is_a_failure_and_is_not_followed(canary: Receiver, target: str) -> None:
    with Receiver() as receiver:
        outcome = await send(receiver.url(f"redirect?to={canary.url(target)}"), OPEN)

    assert (outcome.status_code, outcome.error, canary.connections) == (301, "status 301", 0)


async def test_proxy_of_the_environment_is_not_used(canary: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, canary.url(""))

    outcome = await send("https://example.com/", resolve=no_answer)

    assert (outcome.error, canary.connections) == ("name not resolved", 0)


async def test_tls_is_spoken_to_the_name_at_the_checked_address(tmp_path: Path) -> None:
    server, client = certificate(tmp_path, "hooks.example.com")
    with Receiver(tls=server) as receiver:
        outcome = await send(
            receiver.url("ok", host="hooks.example.com"), OPEN, resolve=answers("127.0.0.1"), tls=client
        )

    assert outcome.status_code == 200
    assert receiver.requests[0].headers["host"] == f"hooks.example.com:{receiver.port}"


@pytest.mark.parametrize("host", ["hooks.example.com", "other.example.com"])
async def test_certificate_that_is_not_trusted_or_not_the_names_is_a_failure(tmp_path: Path, host: str) -> None:
    server, client = certificate(tmp_path, "hooks.example.com")
    trusting = {"tls": client} if host == "other.example.com" else {}
    with Receiver(tls=server) as receiver:
        outcome = await send(receiver.url("ok", host=host), OPEN, resolve=answers("127.0.0.1"), **trusting)

    assert (outcome.status_code, outcome.error, receiver.requests) == (None, "tls failed", [])


def test_system_answers_with_every_address_of_a_name() -> None:
    assert ip_address("127.0.0.1") in url_guard.system_resolve("localhost", 443)


async def test_name_without_any_address_is_a_failed_attempt() -> None:
    assert (await send("https://example.com/", resolve=answers())).error == "name not resolved"
