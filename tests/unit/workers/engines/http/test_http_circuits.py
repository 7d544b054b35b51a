"""Circuits shut out servers that fail; windows bound what is in flight at each."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web

from jobs.timings import Timings
from tests.support.scripted_server import Server, engine_of, request, says, serving, until, unused_url
from workers.engines import wire
from workers.engines.http.endpoints import FAULTS, FIRST_DELAY_SECONDS, Circuit, CircuitState, Endpoint, RequestWindow
from workers.engines.http.http_engine import HttpEngine
from workers.engines.port import EngineBusy, EngineFault


async def test_circuit_opens_after_consecutive_faults_and_closes_on_listing(server: Server, engine: HttpEngine) -> None:
    server.script = says(502)
    await asyncio.gather(*(engine.answer(request()) for _ in range(FAULTS)), return_exceptions=True)
    circuit = engine.endpoints[0].circuit

    assert circuit.state is CircuitState.OPEN
    with pytest.raises(EngineBusy):
        await engine.answer(request())

    server.script = None
    await until(lambda: circuit.is_closed)
    assert (await engine.answer(request())).status == 200


async def test_poisonous_requests_between_answers_leave_the_circuit_closed(server: Server, engine: HttpEngine) -> None:
    for _ in range(FAULTS):
        server.script = says(504)
        with pytest.raises(EngineFault):
            await engine.answer(request())
        server.script = None
        await engine.answer(request())

    assert engine.endpoints[0].circuit.is_closed


async def test_server_that_starts_later_is_found() -> None:
    url = unused_url()
    async with engine_of(Endpoint(url), timings=replace(Timings(), http_first_list=0.1)) as engine:
        assert engine.models == ()
        async with serving(Server("late"), port=int(url.rsplit(":", 1)[1])):
            await until(lambda: engine.models == ("late",))
            assert (await engine.answer(request("late"))).status == 200


@pytest.mark.parametrize(
    "listing",
    [
        web.Response(text="<html>"),
        web.json_response({"data": [{"name": "m"}]}),
        web.Response(text='{"data":[{"id":"m","owned_by":' + "[" * 5000 + "]" * 5000 + "}]}"),
    ],
    ids=["not-json", "no-ids", "too-deep"],
)
async def test_server_without_a_usable_list_has_not_shown_its_models(server: Server, listing: web.Response) -> None:
    server.listing = listing
    async with engine_of(Endpoint(server.url)) as engine:
        assert engine.models == ()
        with pytest.raises(EngineBusy, match="No reachable endpoint"):
            await engine.answer(request("whatever"))


def test_retry_after_is_a_number_or_a_date_and_never_absurd() -> None:
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)

    assert wire.retry_after("1.5") == 1.5
    assert wire.retry_after(in_a_minute) == pytest.approx(60, abs=2)
    assert wire.retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert wire.retry_after("-3") == 0
    assert wire.retry_after("1e9") == wire.MAX_RETRY_SECONDS
    long = ("Mon, 01 Jan 2024 00:00:00 +99999999999999999999", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT")
    assert [wire.retry_after(odd) for odd in (None, "", "soon", "nan", *long)] == [None] * 6


def test_circuit_waits_twice_as_long_after_each_failed_probe() -> None:
    time = 0.0
    circuit = Circuit(clock=lambda: time)
    waits = []

    circuit.trip()
    for _ in range(7):
        waits.append(circuit.wait)
        time += circuit.wait
        assert circuit.is_due()
        circuit.probe()
        assert not circuit.is_due()
        circuit.trip()

    assert waits == [1, 2, 4, 8, 16, 30, 30]


def test_late_failures_of_an_open_circuit_do_not_keep_it_open_for_longer() -> None:
    time = 0.0
    circuit = Circuit(clock=lambda: time)
    circuit.trip()
    first = circuit.wait

    time += first / 2
    circuit.trip()

    assert circuit.wait == first / 2


def test_late_answers_of_an_open_circuit_do_not_close_it() -> None:
    circuit = Circuit(clock=lambda: 0.0)
    circuit.trip()

    circuit.succeed()

    assert circuit.state is CircuitState.OPEN


def test_window_grows_by_single_slot_per_window_and_only_at_capacity() -> None:
    window = RequestWindow(100)
    window.grow(63)
    assert window.limit == 64

    for _ in range(64):
        window.grow(64)

    assert 64.9 < window.limit <= 65


def test_window_never_leaves_its_bounds() -> None:
    window = RequestWindow(2)
    for _ in range(10):
        window.grow(2)
    assert window.limit == 2

    for _ in range(10):
        window.cut(window.cuts)
    assert window.limit == 1


async def test_server_that_refuses_to_list_stays_shut_out_for_longer(server: Server, engine: HttpEngine) -> None:
    circuit = engine.endpoints[0].circuit
    server.listing = web.Response(status=503)
    circuit.trip()
    first = circuit.wait

    await until(lambda: circuit.wait > first)

    assert circuit.state is CircuitState.OPEN
    assert circuit.wait == pytest.approx(2 * FIRST_DELAY_SECONDS, abs=0.3)


async def test_busy_server_that_is_slow_to_list_keeps_its_circuit(server: Server) -> None:
    async with engine_of(Endpoint(server.url), timings=replace(Timings(), http_relist=0.0)) as engine:
        server.listing = web.Response(status=500)

        await engine.discover()

        assert engine.endpoints[0].circuit.is_closed
        assert engine.models == ("m",)
