"""F20: a bad network.

The ways to the database and to the broker take 200 ms more, there and back, and 5 % of what passes is lost with its
connection: hardly any transaction ends. Then 0.5 %: most do, and work goes on. Meanwhile batches are created, small
ones at a steady rate and large ones now and then, and a client waits for completions. What was refused is asked again
afterwards: a commit whose answer was lost has made its job, and the key finds it.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

import openai
from openai.types import Batch
from sqlalchemy import func, make_url, select

from jobs.db.engine import Database
from jobs.ledger.tables import Job
from tests.chaos.doses.deployment import CHAT, Answer, Posting, Site, line, site
from tests.chaos.doses.dose import Given, Outcome, middle
from tests.chaos.doses.intake import answered, exist, judge_audit, same
from tests.support import oracle
from tests.support.distributed import servers
from tests.support.invariants import violations
from tests.support.proxy import Proxy
from tests.support.servers import Valkey
from tests.support.services import Postgres
from tests.support.system import MODEL, SCALED, command, pause, wait_for

_RATE = 2.0
_BAD_SECONDS = 60.0
_GOOD_SECONDS = 5.0
_WAY_SECONDS = 0.1  # each of the two
_LOST = 0.05  # with which hardly a transaction of ten trips ends,
_LOST_SELDOM = 0.005  # and with which most do
_LINES = 300
_LARGE_EVERY = 25.0
_ASK_EVERY = 1.0
_ENDED_SECONDS = 90.0  # I1
_BACKLOG_SECONDS = 600.0  # of all that was refused: nothing is the matter any more
_CREATED_SECONDS = 10.0  # some 15 trips, some of them again
_INTERACTIVE_SECONDS = 20.0
_HUNG_SECONDS = 10.0  # more than that
_TOLD = "Tell"  # how the prompts of interactive clients begin
_SHARD_LINES = int(SCALED["NIGHTMILL_SHARD_LINES"])
#: Scaled by less than elsewhere: with trips of 200 ms a heartbeat takes a second.
_TIMES = {
    "NIGHTMILL_LEASE_SECONDS": "10",
    "NIGHTMILL_INTERACTIVE_SECONDS": f"{_INTERACTIVE_SECONDS:g}",
}


@dataclass(slots=True)
class Bad:
    """The deployment, and the ways that get worse. `url` leads to the database by none of them."""

    made: Site
    ways: Mapping[str, Proxy]
    url: str

    def worsen(self, lost: float) -> None:
        for way in self.ways.values():
            way.worsen(_WAY_SECONDS, lost)

    def mend(self) -> None:
        for way in self.ways.values():
            way.mend()


def bad_network(given: Given) -> Outcome:
    return _dose(given, _embedded, "PostgreSQL and Valkey")


def bad_network_distributed(given: Given) -> Outcome:
    return _dose(given, _distributed, "PostgreSQL, RabbitMQ and Valkey")


@contextmanager
def _embedded(given: Given) -> Iterator[Bad]:
    with ExitStack() as stack:
        postgres, valkey = Postgres(), Valkey(given.folder / "valkey")
        stack.callback(postgres.close)
        stack.callback(valkey.close)
        valkey.start()
        url = stack.enter_context(postgres.database())
        to_database, through = _to_database(stack, given, url)
        to_broker = stack.enter_context(Proxy(valkey.port, rng=given.rng))
        variables = {"NIGHTMILL_DATABASE_URL": through, "NIGHTMILL_BROKER_URL": _redis(to_broker), **_TIMES}
        made = stack.enter_context(site(given, rivals=True, **variables))
        yield Bad(made, {"PostgreSQL": to_database, "Valkey": to_broker}, url)


@contextmanager
def _distributed(given: Given) -> Iterator[Bad]:
    with ExitStack() as stack:
        shared = stack.enter_context(servers(given.folder / "servers"))
        to_database, through = _to_database(stack, given, shared.database)
        to_broker = stack.enter_context(Proxy(shared.rabbit.port, rng=given.rng))
        to_streams = stack.enter_context(Proxy(shared.valkey.port, rng=given.rng))
        ways = {
            "NIGHTMILL_DATABASE_URL": through,
            "NIGHTMILL_BROKER_URL": shared.rabbit.url.replace(str(shared.rabbit.port), str(to_broker.port)),
            "NIGHTMILL_STREAMS_URL": _redis(to_streams),
        }
        made = stack.enter_context(site(given, rivals=True, **shared.variables | ways | _TIMES))
        yield Bad(made, {"PostgreSQL": to_database, "RabbitMQ": to_broker, "Valkey": to_streams}, shared.database)


def _to_database(stack: ExitStack, given: Given, url: str) -> tuple[Proxy, str]:
    """Open a proxy to the database; return it, and the URL that leads through it."""
    at = make_url(url)
    way = stack.enter_context(Proxy(f"{at.query['host']}/.s.PGSQL.5432", rng=given.rng))
    return way, at.set(host="127.0.0.1", port=way.port, query={}).render_as_string(hide_password=False)


def _redis(way: Proxy) -> str:
    return f"redis://127.0.0.1:{way.port}/0"


def _dose(given: Given, deployment: Callable[[Given], AbstractContextManager[Bad]], ends: str) -> Outcome:
    times = given.part(3)
    trips = f"the ways to {ends} {2 * _WAY_SECONDS * 1000:g} ms slower"
    told = f"{_LOST:.0%} of what passes reset for {_BAD_SECONDS:g} s, then {_LOST_SELDOM:.1%}"
    outcome = Outcome(f"{trips}, {told}, {times} times")
    asked = Counter[float]()
    with deployment(given) as bad:
        made = bad.made
        file_id, large = made.upload(line("r0", "Say the word")), Large(made)
        with ExitStack() as stack:
            stack.callback(bad.mend)
            posting = stack.enter_context(Posting(made, file_id, _RATE).going_on())
            asking = stack.enter_context(Asking(made).going_on())
            for lost in [_LOST, _LOST_SELDOM] * times:
                pause(_GOOD_SECONDS)
                large.create()
                bad.worsen(lost)
                asked[lost] -= len(made.prompts())
                _every(_LARGE_EVERY, _BAD_SECONDS, large.create)
                asked[lost] += len(made.prompts())
                bad.mend()
            pause(_GOOD_SECONDS)
        began = time.monotonic()
        ended = made.await_ended(4 * _ENDED_SECONDS)
        outcome.judge(
            f"{asked[_LOST]} and {asked[_LOST_SELDOM]} requests meanwhile",
            *([] if asked[_LOST_SELDOM] else ["nothing was at work"]),
        )
        outcome.at_most("all ended after", time.monotonic() - began if ended else float("inf"), _ENDED_SECONDS, " s")
        _judge_creates(outcome, made, file_id, posting.answers, large)
        chats(outcome, asking.answers)
        large.judge(outcome)
        _judge_inside(outcome, bad)
        judge_audit(outcome, made)
        for name, way in bad.ways.items():
            told = f"{name}: {way.carried} connections, {way.resets} of {way.chunks} chunks reset"
            outcome.judge(told, *([] if way.resets else [f"nothing to {name} was reset"]))
        _judge_stop(outcome, made)
    return outcome


def _every(seconds: float, whole: float, do: Callable[[], None]) -> None:
    until = time.monotonic() + whole
    while (left := until - time.monotonic()) > 0:
        pause(min(seconds, left))
        if left > seconds:
            do()


# -- who creates


@dataclass(slots=True)
class Large:
    """Batches of some hundred lines, and what was seen of them. One that was refused is asked for again."""

    made: Site
    jobs: list[oracle.Job] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    client: openai.OpenAI = field(init=False)
    polls: dict[str, list[Batch]] = field(default_factory=dict)
    file: str = ""

    def __post_init__(self) -> None:
        self.client = openai.OpenAI(
            base_url=f"{self.made.system.url}/v1", api_key=self.made.system.api_key, max_retries=8, timeout=30
        )
        self.file = self.made.upload(self._job("any").jsonl())

    @staticmethod
    def _job(key: str) -> oracle.Job:
        return oracle.Job(key, CHAT, MODEL, {f"r{n}": f"Count to {n}" for n in range(_LINES)})

    def create(self) -> None:
        job = self._job(f"large-{len(self.jobs):03d}")
        self.jobs.append(job)
        self.answers.append(self.made.batch(self.file, job.key))
        self.look()

    def look(self) -> None:
        """I5: what each of them shows now, if it can be had."""
        impatient = self.client.with_options(max_retries=0)
        for answer in self.answers:
            if answer.job:
                try:
                    self.polls.setdefault(answer.job, []).append(impatient.batches.retrieve(answer.job))
                except openai.OpenAIError:
                    continue  # refused: another look will do

    def judge(self, outcome: Outcome) -> None:
        """Judge each batch: every `custom_id` once with its answer, usage summed, states that only advance."""
        faults = list[str]()
        for job, answer in zip(self.jobs, self.answers, strict=True):
            job.batch_id = answer.job
            result = oracle.fetch(self.client, answer.job)
            for check in (oracle.ended, oracle.complete, oracle.counted):
                faults += check(job, result)
            faults += oracle.monotone(job, [*self.polls.get(answer.job, ()), result.batch])
            faults += oracle.transitions(self.client, job)
        outcome.judge(
            f"{len(self.jobs)} batches of {_LINES} lines, each once, usage is the sum, none went back", *faults
        )


@dataclass(slots=True)
class Asking:
    """A client that waits for one completion after the other."""

    made: Site
    answers: list[Answer] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def going_on(self) -> Iterator["Asking"]:
        thread = threading.Thread(target=self._ask, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join(3 * _INTERACTIVE_SECONDS)

    def _ask(self) -> None:
        number = 0
        while not self._stop.wait(_ASK_EVERY):
            key, ports = f"ask-{number:05d}", self.made.system.ports
            messages = [{"role": "user", "content": f"{_TOLD} {key}"}]
            body = {"model": MODEL, "max_tokens": 16, "messages": messages}
            self.answers.append(self.made.post("chat/completions", body, key, ports[number % len(ports)]))
            number += 1


# -- judgement


def _judge_creates(outcome: Outcome, made: Site, file_id: str, small: Sequence[Answer], large: Large) -> None:
    answers = [*small, *large.answers]
    answered(outcome, answers, refused=_CREATED_SECONDS, hung=_CREATED_SECONDS)
    keys = {str(job["idempotency_key"]) for job in made.jobs()}
    refused = [one for one in answers if one.status != 200]
    outcome.judge(f"{sum(one.key in keys for one in refused)} of those refused had been made: their answer was lost")
    files = dict.fromkeys((job.key for job in large.jobs), large.file)
    again = [made.batch(files.get(one.key, file_id), one.key) for one in refused]
    named = {one.key: one for one in again}
    large.answers[:] = [named.get(one.key, one) for one in large.answers]
    outcome.judge("asked again they are answered with 200", *same(refused, again)[:10])
    if not made.await_ended(_BACKLOG_SECONDS):
        outcome.violations.append(f"what was asked again has not ended after {_BACKLOG_SECONDS:g} s")
    jobs = made.jobs()
    outcome.judge(f"{len(jobs)} jobs, one for each key", *exist([*answers, *again], jobs)[:10])


def chats(outcome: Outcome, answers: Sequence[Answer]) -> None:
    """Judge that waiting clients are answered, or get an error in OpenAI's shape, within the time that they wait."""
    statuses = Counter(one.status for one in answers)
    others = [one for one in answers if one.status not in {200, 408, 503}]
    shapeless = [one for one in answers if one.status in {408, 503} and not one.told.startswith('{"error":{"message":')]
    outcome.judge(
        f"{len(answers)} completions: {dict(statuses)}",
        *(f"{one.key}: {one.status} after {one.seconds:.1f} s {one.told}" for one in [*others, *shapeless][:5]),
        "" if statuses[200] else "no completion was answered with 200",
    )
    most = _INTERACTIVE_SECONDS + _HUNG_SECONDS
    outcome.at_most("completions after, worst", max((one.seconds for one in answers), default=0), most, " s")
    outcome.judge(f"{middle([one.seconds for one in answers]):.2f} s (median)")


def asked_twice(outcome: Outcome, prompts: Sequence[str], lines: int, losses: int) -> None:
    """Check I4: a commit whose answer is lost is looked up and costs nothing.

    A claim that was lost with its lease, because its heartbeats did not arrive for so long, costs a shard at most.
    """
    told = [prompt for prompt in prompts if _TOLD in prompt]
    most = losses * _SHARD_LINES
    outcome.at_most(f"{losses} leases lost, requests twice", len(prompts) - len(told) - lines, most)
    outcome.judge(f"completions asked twice {len(told) - len(set(told))}")


def _judge_inside(outcome: Outcome, bad: Bad) -> None:
    """I2, I3: of all jobs, as their rows have it."""
    db = Database(bad.url)
    try:
        with db.read() as session:
            lines, losses = session.execute(select(func.sum(Job.total), func.sum(Job.lost_leases))).one()
            faults = violations(session)
    finally:
        db.close()
    outcome.judge("shards, sums, events and audit rows agree", *faults[:10])
    asked_twice(outcome, bad.made.prompts(), int(lines), int(losses))


def _judge_stop(outcome: Outcome, made: Site) -> None:
    code, left = made.system.stop(), list[str]()
    try:
        wait_for(lambda: not made.system.family(), 3, "nothing is left")
    except TimeoutError:
        left = [" ".join(command(process))[:120] for process in made.system.family()]
    outcome.judge("no process is left", *left, f"`up` ended with {code}" if code else "")
