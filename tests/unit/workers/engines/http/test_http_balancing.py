"""Requests of the HTTP engine go to the servers that have their models and are free, in the order of their priority."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from jobs.fleet.models_file import Registry
from jobs.settings import Settings
from jobs.timings import Timings
from tests.support.scripted_server import (
    Handler,
    Server,
    engine_of,
    error_of,
    good,
    request,
    says,
    serving,
    until,
    unused_url,
)
from workers.engines.build_engines import build
from workers.engines.http import http_engine
from workers.engines.http.endpoints import FIRST_DELAY_SECONDS, FIRST_WINDOW, CircuitState, Endpoint
from workers.engines.http.http_engine import HttpEngine
from workers.engines.port import Answer, EngineBusy
from workers.engines.router import Router


async def test_requests_go_to_the_server_with_the_fewest_in_flight() -> None:
    async def slowly(_: web.BaseRequest) -> web.Response:
        await asyncio.sleep(0.05)
        return good()

    async with (
        serving(Server()) as one,
        serving(Server()) as two,
        engine_of(Endpoint(one.url), Endpoint(two.url)) as engine,
    ):
        one.script = two.script = slowly
        await asyncio.gather(*(engine.answer(request()) for _ in range(40)))

    assert (len(one.asked), len(two.asked)) == (20, 20)


async def test_request_only_goes_where_its_model_is() -> None:
    async with (
        serving(Server("a")) as one,
        serving(Server("b")) as two,
        engine_of(Endpoint(one.url), Endpoint(two.url)) as engine,
    ):
        await asyncio.gather(*(engine.answer(request("b")) for _ in range(5)))

        assert engine.models == ("a", "b")
        assert (len(one.asked), len(two.asked)) == (0, 5)


async def test_connection_refusal_falls_back_to_another_server(server: Server) -> None:
    dead = Endpoint(unused_url(), serves={"m": "m"})
    async with engine_of(dead, Endpoint(server.url)) as engine:
        answers = [await engine.answer(request()) for _ in range(3)]

    assert [answer.status for answer in answers] == [200, 200, 200]
    assert dead.circuit.state is CircuitState.OPEN


async def test_loading_server_falls_back_to_another_server() -> None:
    async with (
        serving(Server()) as one,
        serving(Server()) as two,
        engine_of(Endpoint(one.url), Endpoint(two.url)) as engine,
    ):
        one.script = says(503, '{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}')
        answers = await asyncio.gather(*(engine.answer(request()) for _ in range(10)))

    assert {answer.status for answer in answers} == {200}
    assert len(two.asked) == 10


async def test_engine_is_busy_while_every_server_refuses() -> None:
    endpoint = Endpoint(unused_url(), serves={"m": "m"})
    async with engine_of(endpoint) as engine:
        endpoint.finish_listing(None)  # as if it had been there a moment ago
        with pytest.raises(EngineBusy) as first:
            await engine.answer(request())
        with pytest.raises(EngineBusy, match="takes requests now") as second:
            await engine.answer(request())

    assert "not reachable" in str(first.value)
    assert second.value.retry_after == pytest.approx(FIRST_DELAY_SECONDS, abs=0.3)


async def test_unreachable_server_is_unavailable_before_first_request() -> None:
    endpoint = Endpoint(unused_url(), serves={"m": "m"})
    server = Server()
    async with engine_of(endpoint) as engine:
        router = Router([engine], Registry({}, {}, Path("models.yaml")))
        before = router.reachable_models
        async with serving(server, int(endpoint.url.rpartition(":")[2])):
            await until(lambda: endpoint.circuit.is_closed, 30)
            after = router.reachable_models

    assert (before, after) == (frozenset(), frozenset({"m"}))
    assert server.asked == []


async def test_unknown_model_is_an_answer_once_every_server_has_shown_its_models(engine: HttpEngine) -> None:
    answer = await engine.answer(request("other"))

    assert answer.status == 404
    assert error_of(answer)["code"] == "model_not_found"


async def test_unknown_model_is_retryable_while_server_is_unreachable(server: Server) -> None:
    async with engine_of(Endpoint(server.url), Endpoint(unused_url())) as engine:
        with pytest.raises(EngineBusy, match="No reachable endpoint"):
            await engine.answer(request("other"))


async def test_retry_after_of_a_503_reaches_the_worker(server: Server, engine: HttpEngine) -> None:
    server.script = says(503, Retry_After="7")

    with pytest.raises(EngineBusy) as caught:
        await engine.answer(request())

    assert caught.value.retry_after == 7


async def test_rate_limited_request_is_retried_after_requested_pause(server: Server, engine: HttpEngine) -> None:
    loop = asyncio.get_running_loop()
    times: list[float] = []

    async def limited_once(_: web.BaseRequest) -> web.Response:
        times.append(loop.time())
        return good() if len(times) > 1 else web.Response(status=429, headers={"Retry-After": "1"})

    server.script = limited_once
    answer = await engine.answer(request())

    assert answer.status == 200
    assert times[1] - times[0] >= 1.0


async def test_request_that_stays_limited_goes_back_to_the_worker(server: Server) -> None:
    server.script = says(429)
    async with engine_of(Endpoint(server.url), timings=replace(Timings(), http_first_backoff=0.001)) as engine:
        with pytest.raises(EngineBusy, match="429"):
            await engine.answer(request())

    assert len(server.asked) == http_engine.TRIES_WHEN_LIMITED


@pytest.mark.parametrize("status", [401, 402, 407])
async def test_a_refused_key_is_no_fault_of_the_request_that_is_sent_with_it(
    server: Server, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    at = 100.0
    server.script = says(status, b'{"error": {"message": "Incorrect API key provided: sk-live*****1234."}}')
    async with engine_of(Endpoint(server.url, clock=lambda: at)) as engine:
        with pytest.raises(EngineBusy, match="refuses our key") as caught:
            await engine.answer(request())
        with pytest.raises(EngineBusy, match="takes our key") as again:
            await engine.answer(request())

        assert len(server.asked) == 1
        at += http_engine.CLOSED_SECONDS
        server.script = says(200)
        assert (await engine.answer(request())).status == 200

    assert caught.value.retry_after == again.value.retry_after == http_engine.CLOSED_SECONDS
    told = [vars(record)["status"] for record in caplog.records if record.message == "engine.refuses_our_key"]
    assert told == [status]
    assert "sk-live" not in f"{caught.value} {again.value} {caplog.text}"


async def test_rejected_api_key_falls_back_to_another_endpoint(server: Server) -> None:
    server.script = says(401)
    async with serving(Server()) as other, engine_of(Endpoint(server.url), Endpoint(other.url)) as engine:
        answers = [await engine.answer(request()) for _ in range(4)]

    assert [answer.status for answer in answers] == [200] * 4
    assert len(server.asked) == 1  # it is not the emptiest for being the one that refuses
    assert len(other.asked) == 4


async def test_long_pause_is_the_workers_to_wait_for_those_in_line_too(server: Server) -> None:
    proceed = asyncio.Event()

    async def limited(_: web.BaseRequest) -> web.Response:
        await proceed.wait()
        return web.Response(status=429, headers={"Retry-After": "60"})

    server.script = limited
    async with engine_of(Endpoint(server.url, concurrency=1)) as engine:
        tasks = [asyncio.create_task(engine.answer(request())) for _ in range(3)]
        await until(lambda: len(server.asked) == 1)
        proceed.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes if not isinstance(outcome, Answer)] != []
    assert all(isinstance(outcome, EngineBusy) and (outcome.retry_after or 0) > 55 for outcome in outcomes)
    assert len(server.asked) == 1


async def test_no_more_requests_are_in_flight_than_the_endpoint_may_have(server: Server) -> None:
    async def slowly(_: web.BaseRequest) -> web.Response:
        await asyncio.sleep(0.01)
        return good()

    server.script = slowly
    async with engine_of(Endpoint(server.url, concurrency=4)) as engine:
        answers = await asyncio.gather(*(engine.answer(request()) for _ in range(40)))

    assert len(answers) == 40
    assert server.most_at_once == 4


async def test_overload_halves_the_window_once_per_burst(server: Server, engine: HttpEngine) -> None:
    window = engine.endpoints[0].window
    server.script = says(503)

    await asyncio.gather(*(engine.answer(request()) for _ in range(20)), return_exceptions=True)

    assert window.limit == FIRST_WINDOW / 2
    assert engine.endpoints[0].slots.used == 0


async def test_lower_priority_number_is_served_first_in_the_line(server: Server) -> None:
    gate = asyncio.Event()

    async def gated(_: web.BaseRequest) -> web.Response:
        await gate.wait()
        return good()

    server.script = gated
    async with engine_of(Endpoint(server.url, concurrency=1)) as engine:
        order = [("first", 0), ("later", 5), ("soon", -1), ("middle", 0)]
        tasks = []
        for prompt, priority in order:
            tasks.append(asyncio.create_task(engine.answer(request(prompt=prompt, priority=priority))))
            await asyncio.sleep(0)
        await until(lambda: len(server.asked) == 1)
        gate.set()
        await asyncio.gather(*tasks)

    assert [asked["messages"][0]["content"] for asked in server.asked] == ["first", "soon", "middle", "later"]


async def test_cancelled_requests_free_their_slots_and_places(server: Server) -> None:
    async def hang(_: web.BaseRequest) -> web.Response:
        await asyncio.sleep(60)
        return good()

    server.script = hang
    async with engine_of(Endpoint(server.url, concurrency=2)) as engine:
        tasks = [asyncio.create_task(engine.answer(request())) for _ in range(6)]
        await until(lambda: len(server.asked) == 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        server.script = None

        async with asyncio.timeout(2):
            assert (await engine.answer(request())).status == 200
        assert engine.endpoints[0].slots.used == 0


async def test_turn_of_a_request_that_is_cancelled_as_it_comes_goes_to_the_next(server: Server) -> None:
    gate = asyncio.Event()

    async def gated(_: web.BaseRequest) -> web.Response:
        await gate.wait()
        return good()

    server.script = gated
    async with engine_of(Endpoint(server.url, concurrency=1)) as engine:
        first = asyncio.create_task(engine.answer(request()))
        await until(lambda: len(server.asked) == 1)
        second, third = [asyncio.create_task(engine.answer(request())) for _ in range(2)]
        await asyncio.sleep(0)
        first.add_done_callback(lambda _: second.cancel())
        gate.set()

        async with asyncio.timeout(2):
            outcomes = await asyncio.gather(first, second, third, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [Answer, asyncio.CancelledError, Answer]


async def test_new_endpoints_take_over_and_retained_endpoints_preserve_state(server: Server) -> None:
    answered = asyncio.Event()

    async def slowly(_: web.BaseRequest) -> web.StreamResponse:
        await answered.wait()
        return good()

    server.script = slowly
    async with serving(Server("new")) as new:
        away = Endpoint(unused_url(), serves={"away": "x"})
        async with engine_of(Endpoint(server.url, serves={"m": "m"}, concurrency=1), away) as engine:
            with pytest.raises(EngineBusy):
                await engine.answer(request("away"))
            in_flight, in_line = (asyncio.create_task(engine.answer(request())) for _ in range(2))
            await until(lambda: server.at_once == 1)

            engine.adopt(
                [Endpoint(new.url, serves={"m": "new"}), Endpoint(away.url, serves={"away": "y", "also": "z"})], {}
            )
            answered.set()

            assert (await in_flight).status == 200
            with pytest.raises(EngineBusy):
                await in_line
            assert (await engine.answer(request())).status == 200
            assert (len(server.asked), [body["model"] for body in new.asked]) == (1, ["new"])
            assert engine.endpoints[1] is away
            assert not away.circuit.is_closed
            assert engine.models == ("also", "away", "m")


async def test_added_server_offers_its_models_and_removed_server_offers_none(server: Server) -> None:
    async with engine_of() as engine:
        engine.adopt([Endpoint(server.url)], {})
        await until(lambda: engine.models == ("m",))

        engine.adopt([], {})

        assert engine.models == ()
        assert (await engine.answer(request())).status == 404


async def test_a_request_in_line_gets_its_server_though_another_has_come_to_list_the_model(server: Server) -> None:
    """Keep a request to the servers of its arrival, and give their slots to those that wait for them."""
    gates = {"any": asyncio.Event(), "named": asyncio.Event()}

    def gated(name: str) -> Handler:
        async def answer(_: web.BaseRequest) -> web.Response:
            await gates[name].wait()
            return good()

        return answer

    server.on_list, server.script = says(404), gated("any")
    async with serving(Server("other")) as named:
        named.script = gated("named")
        endpoints = Endpoint(server.url, concurrency=1), Endpoint(named.url, concurrency=1)
        async with engine_of(*endpoints) as engine:
            running = [asyncio.create_task(engine.answer(request(model))) for model in ("m", "other")]
            await until(lambda: server.at_once == named.at_once == 1)
            in_line = []
            for model in ("other", "m"):
                in_line.append(asyncio.create_task(engine.answer(request(model))))
                await until(lambda: sum(one.slots.waiting for one in endpoints) == len(in_line))
            endpoints[1].listed_models = frozenset({"other", "m"})
            gates["any"].set()

            assert (await asyncio.wait_for(in_line[1], 30)).status == 200
            assert not in_line[0].done()
            gates["named"].set()
            await asyncio.gather(*running, *in_line)

    assert [len(one.asked) for one in (server, named)] == [2, 2]


async def test_the_engines_of_a_worker_have_its_timings(server: Server, tmp_path: Path) -> None:
    timings = replace(Timings(), http_watch=0.01, http_relist=0.0)
    config = Settings(data_dir=tmp_path, engine_urls=[server.url], vllm_enabled=False)
    router = build(config, Registry.load(config), "gpu.generate", timings=timings)
    await router.start()
    try:
        server.name = "another"
        await until(lambda: "another" in router.models)  # half a minute by default
        assert "another" in router.models
    finally:
        await router.close()
