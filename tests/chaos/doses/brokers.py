"""The broker is unavailable, has lost everything, takes nothing, or is cut off silently.

    F6   it dies, forgets all that was queued and comes back: every message is published again
    F7   it dies and remembers; it hangs; the way to it (or to PostgreSQL) swallows everything for a minute
    F8   it takes no more messages

Meanwhile batches are created at a steady rate, and each is answered with 200.
"""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import httpx2
import redis
from sqlalchemy import make_url

from cli.up.broker import socket_path
from tests.chaos.doses.deployment import Posting, Site, line, site
from tests.chaos.doses.dose import Given, Outcome
from tests.chaos.doses.intake import answered, exist
from tests.support.distributed import servers
from tests.support.proxy import Proxy
from tests.support.servers import Rabbit, Valkey
from tests.support.services import Postgres
from tests.support.system import pause, signal_all, wait_for

_RATE = 10.0
_DOWN_SECONDS = 10.0
_FROZEN_SECONDS = 30.0
_HOLE_SECONDS = 60.0
_CLAIM_SECONDS = 20.0  # F6
_RESUME_SECONDS = 30.0  # F7
_ANSWER_SECONDS = 0.5  # I8, p99
_ENDED_SECONDS = 90.0  # I1
_LOST = 64  # lines of one worker's two shards


def _bear(
    outcome: Outcome, made: Site, outages: Sequence[Callable[[], None]], resume: float, *, refused: bool = False
) -> Outcome:
    """Cause one outage after the other, and note when the engine is asked again. `refused`: intake may answer 503."""
    file_id, waits = made.upload(line("r0", "Say the word")), list[float]()
    with Posting(made, file_id, _RATE).going_on() as posting:
        for outage in outages:
            pause(3)
            outage()
            waits.append(_until_asked(made))
        pause(2)
    began = time.monotonic()
    ended = made.await_ended(4 * _ENDED_SECONDS)
    outcome.at_most("goes on after, worst", max(waits), resume, " s")
    outcome.at_most("all ended after", time.monotonic() - began if ended else float("inf"), _ENDED_SECONDS, " s")
    answered(outcome, posting.answers)
    jobs = made.jobs()
    outcome.judge(f"{len(jobs)} jobs, one for each key and every 200", *exist(posting.answers, jobs)[:10])
    if not refused:
        times = sorted(one.seconds for one in posting.answers)
        outcome.at_most("creates, p99", times[int(len(times) * 0.99)], _ANSWER_SECONDS, " s")
        outcome.judge("none is refused", *(f"{one.key}: {one.status}" for one in posting.answers if one.status != 200))
    outcome.at_most("requests twice", len(made.prompts()) - len(jobs), len(outages) * _LOST if refused else 0)
    return outcome


def _judge_alarm(outcome: Outcome, made: Site) -> Outcome:
    """F8: whoever watches the metrics sees it."""
    text = httpx2.get(f"{made.system.url}/metrics", timeout=30).raise_for_status().text
    told = re.search(r"^nightmill_broker_refusals_total (\S+)$", text, re.MULTILINE)
    refusals = float(told[1]) if told else 0.0
    outcome.judge(f"nightmill_broker_refusals_total {refusals:g}", *([] if refusals else ["no metric tells of it"]))
    return outcome


def _until_asked(made: Site) -> float:
    began, heard = time.monotonic(), made.engine.heard()
    wait_for(lambda: made.engine.heard() > heard, 6 * _RESUME_SECONDS, "the engine is asked again")
    return time.monotonic() - began


# -- the embedded broker


def valkey_lost(given: Given) -> Outcome:
    times, flushes = given.part(5), given.part(3)
    lost = f"kill -9 without its file, {_DOWN_SECONDS:g} s down, {times} times"
    outcome = Outcome(f"Valkey {lost}; FLUSHALL, {flushes} times")
    with site(given) as made:
        outages = [partial(_down, made)] * times + [partial(_flush, made)] * flushes
        return _bear(outcome, made, outages, _CLAIM_SECONDS)


def _down(made: Site) -> None:
    """Kill a supervised server again and again until it was away long enough, and wait until it is back.

    The supervisor starts it again each time, later after many ends.
    """
    until = time.monotonic() + _DOWN_SECONDS
    while time.monotonic() < until:
        signal_all(made.system.tree("broker"), signal.SIGKILL)
        shutil.rmtree(made.system.data / "broker" / "appendonlydir", ignore_errors=True)
        pause(0.2)
    wait_for(lambda: _answers(made), _ENDED_SECONDS, "the broker is back")


def _answers(made: Site) -> bool:
    try:
        with redis.Redis(unix_socket_path=str(socket_path(made.system.data))) as broker:
            return bool(broker.ping())
    except redis.RedisError:
        return False


def _flush(made: Site) -> None:
    with redis.Redis(unix_socket_path=str(socket_path(made.system.data))) as broker:
        broker.flushall()


def valkey_killed(given: Given) -> Outcome:
    times, freezes = given.part(5), given.part(3)
    outcome = Outcome(f"Valkey kill -9, {times} times; SIGSTOP {_FROZEN_SECONDS:g} s, {freezes} times")
    with site(given) as made:

        def kill() -> None:
            signal_all(made.system.tree("broker"), signal.SIGKILL)

        def freeze() -> None:
            with made.system.frozen("broker"):
                pause(_FROZEN_SECONDS)

        return _bear(outcome, made, [kill] * times + [freeze] * freezes, _RESUME_SECONDS)


def valkey_full(given: Given) -> Outcome:
    outcome = Outcome("Valkey at maxmemory, noeviction, for 20 s")
    with site(given) as made:

        def fill() -> None:
            with redis.Redis(unix_socket_path=str(socket_path(made.system.data))) as broker:
                broker.config_set("maxmemory", "1mb")
                pause(20)
                broker.config_set("maxmemory", "0")

        return _judge_alarm(_bear(outcome, made, [fill], _RESUME_SECONDS), made)


# -- the distributed set


@contextmanager
def _distributed(given: Given) -> Iterator[tuple[Site, Rabbit]]:
    with servers(given.folder / "servers") as shared, site(given, **shared.variables) as made:
        yield made, shared.rabbit


def rabbit_lost(given: Given) -> Outcome:
    times = given.part(5)
    outcome = Outcome(f"RabbitMQ kill -9, its queues lost, {_DOWN_SECONDS:g} s down, {times} times")
    with _distributed(given) as (made, rabbit):

        def lose() -> None:
            rabbit.kill()
            shutil.rmtree(rabbit.folder / "db")
            pause(_DOWN_SECONDS)
            rabbit.start()

        return _bear(outcome, made, [lose] * times, _CLAIM_SECONDS)


def rabbit_full(given: Given) -> Outcome:
    """F8: an alarm, in which it reads nothing more from who publishes."""
    outcome = Outcome("RabbitMQ over its memory's limit for 20 s")
    with _distributed(given) as (made, rabbit):

        def fill() -> None:
            _watermark(rabbit, "0.0000001")
            pause(20)
            _watermark(rabbit, "0.6")

        return _judge_alarm(_bear(outcome, made, [fill], _RESUME_SECONDS), made)


def _watermark(rabbit: Rabbit, share: str) -> None:
    environment = dict(rabbit.environment())
    command = ["/usr/lib/rabbitmq/bin/rabbitmqctl", "-n", environment["RABBITMQ_NODENAME"]]
    command += ["set_vm_memory_high_watermark", share]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)


# -- ways that swallow


def rabbit_half_open(given: Given) -> Outcome:
    with ExitStack() as stack:
        shared = stack.enter_context(servers(given.folder / "servers"))
        proxy = stack.enter_context(Proxy(shared.rabbit.port))
        url = shared.rabbit.url.replace(str(shared.rabbit.port), str(proxy.port))
        made = stack.enter_context(site(given, **shared.variables | {"NIGHTMILL_BROKER_URL": url}))
        return _swallowed(given, made, proxy, "RabbitMQ")


def valkey_half_open(given: Given) -> Outcome:
    with ExitStack() as stack:
        server = Valkey(given.folder / "valkey")
        stack.callback(server.close)
        server.start()
        proxy = stack.enter_context(Proxy(server.port))
        made = stack.enter_context(site(given, NIGHTMILL_BROKER_URL=f"redis://127.0.0.1:{proxy.port}/0"))
        return _swallowed(given, made, proxy, "Valkey")


def postgres_half_open(given: Given) -> Outcome:
    with ExitStack() as stack:
        server = Postgres()
        stack.callback(server.close)
        at = make_url(stack.enter_context(server.database()))
        proxy = stack.enter_context(Proxy(f"{at.query['host']}/.s.PGSQL.5432"))
        through = at.set(host="127.0.0.1", port=proxy.port, query={}).render_as_string(hide_password=False)
        made = stack.enter_context(site(given, rivals=True, NIGHTMILL_DATABASE_URL=through))
        return _swallowed(given, made, proxy, "PostgreSQL", refused=True)


def _swallowed(given: Given, made: Site, proxy: Proxy, name: str, *, refused: bool = False) -> Outcome:
    times = given.part(3)
    outcome = Outcome(f"the way to {name} swallows everything for {_HOLE_SECONDS:g} s, {times} times")

    def hole() -> None:
        proxy.swallow()
        pause(_HOLE_SECONDS)
        proxy.carry()

    outcome = _bear(outcome, made, [hole] * times, _RESUME_SECONDS, refused=refused)
    outcome.judge(f"{proxy.carried} connections", *([] if proxy.carried else ["nobody went through the proxy"]))
    return outcome
