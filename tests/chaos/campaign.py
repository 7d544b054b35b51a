"""A run: a deployment under load, the faults of a plan one after the other, and the judgement.

    start ─▶ calm: no fault, no rework ─▶ poison ─▶ cancels ─▶ faults under load ─▶ drain ─▶ judge ─▶ stop ─▶ judge

The plan follows from the seed. The cost of a fault is read from the logs of the stub engines, which have a prompt once
for each request.
"""

import random
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from openai import OpenAIError
from openai.types import Batch

from jobs.ledger.slot_weights import SLOTS
from tests.chaos.askers import keys_of
from tests.chaos.faults import ALL_FAULTS, Scene
from tests.chaos.journal import Journal
from tests.chaos.judging import await_settled, judge_stores
from tests.chaos.judging_aliases import await_aliases, judge_aliases
from tests.chaos.judging_evaluated import await_evaluated, judge_evaluated
from tests.chaos.judging_ours import await_kept, judge_broken, judge_caches, judge_mirror
from tests.chaos.judging_pipelines import await_pipelines, judge_pipelines
from tests.chaos.judging_tuned import await_trained, judge_tuned
from tests.chaos.judging_usage import await_limited, judge_limited
from tests.chaos.limited_projects import Administrator, create_limited_projects, output_of, set_prices
from tests.chaos.load import EVERY_END, Client, Load, Mix
from tests.chaos.readers import FeedReader
from tests.support import oracle, stub_engine
from tests.support.distributed import Servers
from tests.support.oracle import Job, Result
from tests.support.receiver import Receiver
from tests.support.stub_engine import BROKEN, CANARY
from tests.support.system import EMBED_MODEL, MODEL, SCALED, StubEngine, System, command, pause, wait_for
from tests.support.weaviate import Weaviate

SHARD_LINES = int(SCALED["NIGHTMILL_SHARD_LINES"])
#: What may be asked again when one engine worker dies.
LOST_AT_ONCE = SLOTS * SHARD_LINES
#: After the last fault: a lease, a redelivery, the supervisor's longest backoff, a start on a slow machine, and the
#: work.
DRAIN_SECONDS = 90.0
#: Nothing goes on anywhere, though something could: a lease, a redelivery, a restart with its backoff.
STUCK_SECONDS = 45.0
CANCEL_SECONDS = 6.0
_CALM_REQUESTS = 10  # interactive ones, whose usage no fault can lose
_GENERATORS = 2  # workers on one engine: all of them lose what they asked it when it crashes
#: What ends of itself in life does not while clocks are moved by a day.
_LONG = {"NIGHTMILL_SOURCE_SECONDS": "200000", "NIGHTMILL_RESPONSE_CACHE_SECONDS": "2600000"}
_TIMES = (
    "NIGHTMILL_LEASE_SECONDS",
    "NIGHTMILL_REDELIVERY_SECONDS",
    "NIGHTMILL_ENGINE_TIMEOUT_SECONDS",
)
_BEFORE = "poison"  # what was asked again before the first fault


@dataclass(frozen=True, slots=True)
class Struck:
    """A fault that happened: when, and how long the engines' logs were."""

    name: str
    at: float
    over: float
    heard: tuple[int, ...]


@dataclass(slots=True)
class Campaign:
    """A run of one seed. Use `with campaign.running():`."""

    folder: Path
    seed: int
    database_url: str = ""
    delay_ms: float = 250.0
    mix: Mix = field(default_factory=Mix)
    width: int = 5
    stubbed: bool = True  # otherwise the engines are the real ones, in process
    patience: float = 1.0  # the factor of all times: how much slower than the stub on a quiet machine all may be
    environment: Mapping[str, str] = field(default_factory=dict)
    servers: Servers | None = None  # that hosts share, in place of what is embedded
    weaviate: Weaviate | None = None
    spared: frozenset[str] = frozenset()  # of two rivals, those that faults leave alone
    told: Callable[[str], None] = lambda _: None  # hears what happens as it happens
    struck: list[Struck] = field(default_factory=list)
    results: dict[str, Result] = field(default_factory=dict)
    journal: Journal = field(init=False)
    scene: Scene = field(init=False)
    reader: FeedReader = field(init=False)
    engines: tuple[StubEngine, ...] = field(init=False, default=())
    _growth: list[float] = field(default_factory=list)
    _first: int = 0  # jobs before this one were judged for rework already

    @property
    def system(self) -> System:
        return self.scene.system

    @property
    def load(self) -> Load:
        return self.scene.load

    @contextmanager
    def running(self) -> Iterator["Campaign"]:
        rng = random.Random(self.seed)
        with ExitStack() as stack:
            self.journal = Journal(self.seed, told=self._noting(stack))
            if self.stubbed:
                self.engines = self._stubs(stack)
            system = self._system()
            stack.callback(system.destroy)
            system.start(120 * self.patience)
            receiver = stack.enter_context(Receiver())
            client = Client(system.ports, system.api_key, self.journal, random.Random(self.seed + 2))
            stranger_key = output_of(system, "keys", "create", "--project", "strangers")
            strangers = Client(system.ports, stranger_key, self.journal, random.Random(self.seed + 3))
            asking = random.Random(self.seed + 1)
            load = Load(client, receiver, self.journal, asking, self._library, strangers, self.mix, self.width)
            if self.mix.limited:
                self._limit(system, load)
            engine = self.engines[0] if self.engines else None
            working = stack.enter_context(load)
            servers = self.servers, self.weaviate, self.spared, self.patience
            self.scene = Scene(system, working, engine, self.journal, rng, *servers)
            self._watch(stack)
            self.reader = FeedReader(client)
            self.reader.start()
            stack.callback(self.reader.stop)
            yield self

    def _noting(self, stack: ExitStack) -> Callable[[str], None]:
        """Keep a journal on disk that is complete at any time, also when the run itself is killed."""
        file = stack.enter_context((self.folder / "journal.txt").open("w", buffering=1))

        def told(line: str) -> None:
            if not file.closed:
                file.write(f"{line}\n")
            self.told(line)

        return told

    def _stubs(self, stack: ExitStack) -> tuple[StubEngine, ...]:
        models = (MODEL, CANARY, BROKEN), (EMBED_MODEL,)
        stubs = [StubEngine(self.folder, *names, delay_ms=self.delay_ms) for names in models]
        return tuple(stack.enter_context(stub) for stub in stubs)

    @property
    def _library(self) -> Path:
        """The folder that may be a source."""
        return self.folder / "library"

    def _system(self) -> System:
        self._library.mkdir(exist_ok=True)
        ours = {"NIGHTMILL_SOURCE_FOLDERS": str(self._library), **_LONG}
        database = {"NIGHTMILL_DATABASE_URL": self.database_url} if self.database_url else {}
        urls = dict(zip(("engine_url", "embed_url"), (engine.url for engine in self.engines), strict=False))
        shared = self.servers.variables if self.servers else {}
        vectors = {"NIGHTMILL_VECTORS_URL": self.weaviate.url} if self.weaviate else {}
        given = {**ours, **self._times(), **database, **shared, **vectors, **self.environment}
        trains, stubbed = bool(self.mix.tuned), bool(urls)
        return System(self.folder, **urls, rivals=stubbed, trains=trains, canaries=stubbed, **given)

    def _times(self) -> dict[str, str]:
        """Return the settings of times, longer by `patience`: a busy machine stands still for longer than a lease."""
        return {name: f"{float(SCALED[name]) * self.patience:g}" for name in _TIMES}

    def _limit(self, system: System, load: Load) -> None:
        """Set prices and limits, and give the load clients that meet them."""
        set_prices(system)
        asking, rng = random.Random(self.seed + 4), random.Random(self.seed + 5)
        admin_key = output_of(system, "keys", "create", "--admin")
        administrator = Administrator(
            Client(system.ports, admin_key, self.journal, asking, is_admin=True),
            lambda key: Client(system.ports, key, self.journal, asking),
        )
        moved = lambda: load.moved.append(time.monotonic())  # noqa: E731
        load.limited = create_limited_projects(administrator, self.journal, rng, load.receiver, moved, self.patience)

    def _watch(self, stack: ExitStack) -> None:
        """Record when the generating engine was asked, and which processes live."""
        stop = threading.Event()
        thread = threading.Thread(target=self._look, args=(stop,), daemon=True)
        thread.start()
        stack.callback(thread.join, 5)
        stack.callback(stop.set)

    def _look(self, stop: threading.Event) -> None:
        heard, turns = 0, 0
        while not stop.wait(0.05):
            if self.engines and (now := self.engines[0].heard()) != heard:
                heard = now
                self._growth.append(time.monotonic())
            turns += 1
            if turns % 40 == 0:
                self.system.remember()

    # -- phases

    def calm(self, batches: int) -> None:
        """Run some batches without a fault: no request is repeated."""
        jobs = [self.load.submit(self.load.new_job()) for _ in range(batches)]
        if self.load.limited:
            for _ in range(_CALM_REQUESTS):
                self.load.limited.metered.ask()
        self._await(jobs, "without a fault")
        asked = sum(map(oracle.rework, self.prompts()))
        if asked:
            self.journal.violation(f"I4: {asked} requests were repeated without a fault")

    def poison(self, words: Sequence[str]) -> None:
        """F14: one poisonous line among many; its neighbours are answered."""
        for word in words:
            began, ends = time.monotonic(), self.engines[0].ends
            self._await([self.load.submit(self.load.new_job("/v1/chat/completions", word))], f"F14 {word}")
            took, crashes = time.monotonic() - began, self.engines[0].ends - ends
            self.journal.note(f"F14 {word}: {took:.1f} s, {crashes} crashes")
            if crashes > 4:
                self.journal.violation(f"F14 {word}: the engine crashed {crashes} times")

    def cancels(self, batches: int) -> None:
        """F18: cancelled at a random moment, in peace: within five seconds it has ended."""
        for _ in range(batches):
            before = len(self.load.cancel_seconds)
            job = self.load.submit(self.load.new_job("/v1/chat/completions", lines=600))
            pause(self.scene.rng.uniform(0, 2))
            self.load.cancel(job)
            self._await([job], "F18")
            for seconds in self.load.cancel_seconds[before:]:
                if seconds > CANCEL_SECONDS * self.patience:
                    self.journal.violation(f"F18: {job.key} was cancelled after {seconds:.1f} s")

    def strike(self, names: Sequence[str], wait: tuple[float, float] = (1.5, 4.5), every: float = 0.0) -> None:
        """Faults under load, each some seconds after the one before, or one in `every` seconds."""
        self.load.feeding.set()
        pause(2)
        for count, name in enumerate(names, 1):
            self.journal.note(f"fault {count}/{len(names)}: {name}")
            heard, began = tuple(engine.heard() for engine in self.engines), time.monotonic()
            try:
                ALL_FAULTS[name].strike(self.scene)
            except (OpenAIError, TimeoutError, RuntimeError) as error:
                self.journal.violation(f"{name}: {type(error).__name__} {error}")
            self.struck.append(Struck(name, began, time.monotonic(), heard))
            if not self.stubbed:
                self._await_work()
            pause(max(self.scene.rng.uniform(*wait), began + every - time.monotonic()))
        self.load.feeding.clear()

    def go_on_until(self, true: Callable[[], object], seconds: float, what: str) -> None:
        """Wait until `true` while the clients go on without a fault. Raises TimeoutError with the clients' state."""
        self.load.feeding.set()
        try:
            wait_for(true, seconds * self.patience, what)
        except TimeoutError as error:
            source, repeaters = self.load.source_client, self.load.repeaters
            cleared = [len(one.clearings) for one in repeaters]
            had = f"{source.synced} syncs, {source.searches} searches, {cleared} clearings; {source.state()}"
            raise TimeoutError(f"{error}: {had}\n{self.journal.story()}") from error
        finally:
            self.load.feeding.clear()

    def _await_work(self) -> None:
        """Wait until work goes on. A real engine takes a minute to start; a kill before that would show nothing new."""
        last = self.struck[-1].over
        try:
            wait_for(lambda: self.load.moved[-1] > last, STUCK_SECONDS * self.patience, "work goes on")
        except TimeoutError as error:
            self.journal.violation(str(error))

    def drain(self) -> None:
        """I1: everything that was accepted ends."""
        began = time.monotonic()
        self._await(list(self.load.jobs), "I1", DRAIN_SECONDS)
        self.load.askers.await_ended(DRAIN_SECONDS * self.patience)
        await_settled(self)
        await_kept(self)
        await_trained(self)
        await_evaluated(self)
        await_pipelines(self)
        await_aliases(self)
        await_limited(self)
        self.journal.note(f"drained in {time.monotonic() - began:.1f} s")

    def _await(self, jobs: Sequence[Job], what: str, seconds: float = 60.0) -> None:
        if not self.load.await_terminal(jobs, seconds * self.patience):
            late = [f"{job.key} {self.load.status(job)}" for job in jobs if job in self.load.open]
            self.journal.violation(f"{what}: not ended in time: {', '.join(late)}")

    # -- judgement

    def judge(self) -> None:
        """Everything that can be asked while it runs."""
        client, load, blame = self.load.client.sdk, self.load, self.journal.violation
        self._await_webhooks()
        if pending := load.client.pending(load.endpoint_id):
            blame(f"F16: {pending} webhooks are still pending")
        blame(*self.reader.violations())
        others = [*load.tuners.keys, *load.pipeline_clients.keys, *(batch.key for batch in load.routed_batches.jobs)]
        blame(*oracle.once(client, load.jobs, others))
        for job in [job for job in load.jobs if job not in load.open]:
            result = self.results[job.key] = oracle.fetch(client, job.batch_id)
            for check in (oracle.ended, oracle.complete, oracle.counted):
                blame(*check(job, result))
            blame(*oracle.in_order(job, result, load.status))
            blame(*oracle.monotone(job, [*load.polls[job.key], result.batch]))
            blame(*oracle.transitions(client, job))
            blame(*self._told(job, result.batch))
        self._judge_responses()
        self._judge_beside()
        if self.rework() > self.bound():
            lost = dict(self.system.logged("lease_lost", "worker_lost"))
            blame(f"I4: {self.rework()} requests were repeated, {self.bound()} may be; logged: {lost}")
        if self.longest_standstill() > STUCK_SECONDS * self.patience:
            blame(f"stuck for {self.longest_standstill():.1f} s")
        verdict = self.system.cli("audit", "verify")
        if verdict.returncode:
            blame(f"I7: {verdict.stdout} {verdict.stderr}")
        self.journal.note(verdict.stdout.strip())

    def _judge_beside(self) -> None:
        if self.load.limited:
            judge_limited(self, self.load.limited)
        if self.mix.stores:
            judge_mirror(self)
            judge_stores(self)
        if self.mix.repeated:
            judge_caches(self)
        if self.mix.tuned:
            judge_tuned(self)
        judge_evaluated(self)
        judge_pipelines(self)
        if self.mix.aliased:
            judge_aliases(self)
        judge_broken(self)

    def _judge_responses(self) -> None:
        askers, events = self.load.askers, [told for told in self.load.told if told.path == f"/{EVERY_END}"]
        self.journal.violation(*oracle.asked_once(keys_of(self.load.client.sdk), askers.asked))
        for one in askers.asked:
            self.journal.violation(*oracle.answered(one, askers.seen.get(one.key, ()), events))

    def stop(self) -> None:
        """Stop the deployment, and check that nothing is left running."""
        code = self.system.stop()
        if code:
            self.journal.violation(f"`up` ended with {code}")
        try:
            wait_for(lambda: not self.system.family(), 3, "nothing is left")
        except TimeoutError:
            left = [" ".join(command(process))[:120] for process in self.system.family()]
            self.journal.violation(f"alive after the stop: {left}")

    def _await_webhooks(self) -> None:
        """Wait for the webhooks; failed deliveries are repeated by their schedule."""
        deadline = time.monotonic() + 30
        load = self.load
        while time.monotonic() < deadline and (
            any(self._untold()) or self._undelivered() or load.client.pending(load.endpoint_id)
        ):
            pause(0.2)

    def _undelivered(self) -> bool:
        """Return whether a response has ended of which nobody was told yet."""
        subjects = {told.subject for told in self.load.told}
        return any(one.id not in subjects for one in self.load.askers.asked)

    def _untold(self) -> Iterator[Job]:
        everywhere = {told.subject for told in self.load.told if told.path == f"/{EVERY_END}"}
        alone = {told.path for told in self.load.told}
        for job in self.load.jobs:
            if job.batch_id not in everywhere or (job.webhook_path and f"/{job.webhook_path}" not in alone):
                yield job

    def _told(self, job: Job, batch: Batch) -> list[str]:
        faults = oracle.told(job, batch.status, [told for told in self.load.told if told.path == f"/{EVERY_END}"])
        if job.webhook_path:
            mine = [told for told in self.load.told if told.path == f"/{job.webhook_path}"]
            faults += oracle.told(job, batch.status, mine)
        return faults

    # -- figures

    def prompts(self) -> list[list[str]]:
        return [stub_engine.prompts(engine.log) for engine in self.engines]

    def rework(self) -> int:
        return sum(self.rework_by_fault().values())

    def bound(self) -> int:
        """For each kill that strikes an engine worker, all that it may have in flight."""
        crashes = sum(engine.ends for engine in self.engines) - sum(one.name == "engine" for one in self.struck)
        return LOST_AT_ONCE * (_GENERATORS * crashes + sum(ALL_FAULTS[one.name].rework for one in self.struck))

    def rework_by_fault(self) -> dict[str, int]:
        """Count what was asked again, by the last fault before it that hit an engine worker."""
        spent: dict[str, int] = {}
        struck = [one for one in self.struck if ALL_FAULTS[one.name].rework]
        for number, log in enumerate(self.prompts()):
            marks, at, seen = [one.heard[number] for one in struck], 0, set()
            for prompt in log:
                if prompt in seen and oracle.is_counted(prompt):
                    last = bisect_right(marks, at) - 1
                    name = struck[last].name if last >= 0 else _BEFORE
                    spent[name] = spent.get(name, 0) + 1
                seen.add(prompt)
                at += len(prompt.encode()) + 3  # its quotes and the line's end
        return spent

    def recoveries(self) -> dict[str, list[float]]:
        """Seconds from a fault to the next question that the generating engine heard (or to what a client saw)."""
        found = {name: list(times) for name, times in self.scene.recovered.items()}
        signs = self._growth if self.engines else sorted(self.load.moved)
        for one in self.struck:
            if ALL_FAULTS[one.name].rework:
                later = bisect_right(signs, one.at + 0.15)
                if later < len(signs):
                    found.setdefault(one.name, []).append(signs[later] - one.at)
        return found

    def longest_standstill(self) -> float:
        """Return the longest time without progress for any client while no fault was active."""
        moved = sorted([*self.load.moved, *(one.at for one in self.struck), *(one.over for one in self.struck)])
        struck = {one.at for one in self.struck}
        return max((after - before for before, after in pairwise(moved) if before not in struck), default=0.0)
