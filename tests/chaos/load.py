"""The clients of a run: they keep some batches open through the official SDK, cancel some, and watch all.

    feeder          while fewer than `width` are open: upload, create, each under a key of its own; some wait for others
    poller          asks for each open batch, remembers every answer that differs from the one before
    askers          keep some responses in the background open (`askers`)
    store_clients   add files to vector stores, and search (`store_clients`)
    source_client   keeps a folder that a vector store follows (`source_client`)
    repeaters       of two projects, ask the same again and again (`repeaters`)
    tuners          train models, and ask for them (`tuners`)
    evaluators      keep some runs of evals open (`evaluators`)
    pipeline_clients   keep some pipelines open (`pipeline_clients`)
    alias_clients   ask an alias that moves, and move it (`alias_clients`)
    promotion_clients   promote another alias and tuned models; batches ask that alias (`promotion_clients`)
    limited         work in projects with limits, and change those (`limited_projects`)
    hooks           verifies each webhook soon after it came

All of them outlive every kill: the SDK retries until it gets an answer.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import openai
from openai import OpenAI
from openai.types import Batch
from standardwebhooks import WebhookVerificationError

from jobs.evals import runs as eval_runs
from jobs.finetuning import jobs as finetuning
from jobs.pipelines import pipelines
from jobs.promotions.promotions import PROMOTION
from jobs.registry.aliases import ROLLED_BACK
from jobs.retrieval import attachments, ingestions
from jobs.webhooks.sending import new_secret
from tests.chaos.alias_clients import AliasClients
from tests.chaos.askers import Askers
from tests.chaos.evaluators import Evaluators
from tests.chaos.journal import Journal
from tests.chaos.limited_projects import LimitedProjects
from tests.chaos.pipeline_clients import PipelineClients
from tests.chaos.promotion_clients import PromotionClients, RoutedBatches
from tests.chaos.repeaters import Repeater
from tests.chaos.source_client import SourceClient
from tests.chaos.store_clients import StoreClients
from tests.chaos.tuners import Tuners
from tests.support.oracle import TERMINAL, Job, Told, verified
from tests.support.receiver import Received, Receiver
from tests.support.system import EMBED_MODEL, MODEL, pause

T = TypeVar("T")
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
#: Poison that costs nobody else anything; `!crash` is for runs of its own.
HARMLESS = ("!reset", "!html", "!500", "!flaky2", "!hang")
_EVENTS = (
    *("batch.completed", "batch.cancelled", "batch.failed", "batch.expired"),
    *("response.completed", "response.cancelled", "response.failed", "response.incomplete"),
    *(*dict.fromkeys(ingestions.EVENTS.values()), *attachments.EVENTS),
    *finetuning.EVENTS.values(),
    *dict.fromkeys(eval_runs.EVENTS.values()),
    *pipelines.EVENTS.values(),
    *dict.fromkeys((*PROMOTION.events.values(), *PROMOTION.other_events)),
    ROLLED_BACK,
)
_POLL_SECONDS = 0.25
_AWAY = frozenset({408, 503})  # nobody answered in time, or there is nobody
EVERY_END = "slow/all"  # a receiver that takes a tenth of a second, so that there is something in flight


@dataclass(frozen=True, slots=True)
class Broken:
    """An answer that says that the engine gave none."""

    at: float
    told: str


class Client:
    """The SDK of one key, patient, and with an eye on the answers that no client should see.

    Each request, a retry too, goes to any of the web processes, as a load balancer would send it.
    """

    def __init__(
        self,
        ports: Sequence[int],
        api_key: str,
        journal: Journal,
        rng: random.Random,
        retries: int = 60,
        *,
        is_admin: bool = False,
    ) -> None:
        self._made_of = (ports, api_key, journal, rng)
        self._journal, self._ports, self._rng = journal, ports, rng
        http = openai.DefaultHttpxClient(event_hooks={"request": [self._spread], "response": [self._look]})
        url = f"http://127.0.0.1:{ports[0]}/v1"
        key: Any = {"admin_api_key" if is_admin else "api_key": api_key}
        self.sdk = OpenAI(base_url=url, max_retries=retries, timeout=20, http_client=http, **key)
        self.busy = 0  # answers 503: a database that is busy says so
        self.broken: list[Broken] = []  # answers of which only the engine's end is an excuse

    def twin(self) -> "Client":
        """Return another client of the same key, whose broken answers are told apart."""
        return Client(*self._made_of)

    @contextmanager
    def hasty(self) -> Iterator["Client"]:
        """Return the same client without retries."""
        client = Client(*self._made_of, retries=0)
        try:
            client.broken = self.broken
            yield client
        finally:
            client.sdk.close()

    def _spread(self, request: httpx2.Request) -> None:
        request.url = request.url.copy_with(port=self._rng.choice(self._ports))

    def _look(self, response: httpx2.Response) -> None:
        if response.status_code == 503:
            self.busy += 1
        elif response.status_code >= 500:
            response.read()
            told = f"{response.request.method} {response.request.url}: {response.text[:500]}"
            if '"engine_error"' in response.text:
                self.broken.append(Broken(time.monotonic(), told))
            else:
                self._journal.violation(told)

    def look(self, get: Callable[[OpenAI], T], seconds: float = 5.0) -> T | None:
        """Return the result of one request; None when the server, its database or its worker is unavailable."""
        try:
            return get(self.sdk.with_options(max_retries=0, timeout=seconds))
        except (openai.APIConnectionError, openai.APITimeoutError):
            return None
        except openai.APIStatusError as error:
            if error.status_code in _AWAY:
                return None
            raise

    def submit(self, job: Job, receiver: Receiver) -> None:
        """Upload and create, however often it takes: both carry the job's key."""
        key = {"Idempotency-Key": job.key}
        file = self.sdk.files.create(file=(f"{job.key}.jsonl", job.jsonl()), purpose="batch", extra_headers=key)
        extra: dict[str, Any] = {"after": [one.batch_id for one in job.after]} if job.after else {}
        if job.webhook_path:
            extra["webhook"] = {"url": receiver.url(job.webhook_path), "secret": job.secret}
        create = partial(
            self.sdk.batches.create,
            input_file_id=file.id,
            endpoint=job.endpoint,  # type: ignore[arg-type]
            completion_window="24h",
            metadata={"key": job.key},
            extra_headers=key,
        )
        try:
            batch = create(extra_body=extra)
        except openai.BadRequestError as error:
            if error.code != "dependency_failed":
                raise
            job.after = []  # one of them was cancelled meanwhile: it runs without them
            batch = create(extra_body={name: extra[name] for name in extra if name != "after"})
        job.batch_id = batch.id

    def cancel(self, job: Job) -> bool:
        """Return whether the server took it; a batch that has ended refuses."""
        try:
            self.sdk.batches.cancel(job.batch_id)
        except openai.ConflictError:
            return False
        return True

    def listen(self, receiver: Receiver) -> tuple[str, str]:
        """Register an endpoint for every end of a batch; its id and its secret."""
        kinds: Any = list(_EVENTS)
        made = self.sdk.webhooks.create(name="all", url=receiver.url(EVERY_END), event_types=kinds)
        return made.id, str(made.signing_secret)

    def replay(self, endpoint_id: str, since: float) -> int:
        """Have everything since then sent again; how much that is."""
        sent = self.sdk.post(f"/webhook_endpoints/{endpoint_id}/replay", cast_to=object, body={"since": since})
        assert isinstance(sent, dict)
        return len(sent["delivery_ids"])

    def pending(self, endpoint_id: str) -> int:
        """Return the deliveries that are still pending, a page of them at most."""
        page = self.sdk.get(f"/webhook_endpoints/{endpoint_id}/deliveries?state=pending&limit=100", cast_to=object)
        assert isinstance(page, dict)
        return len(page["data"])


@dataclass(slots=True)
class Mix:
    """The kinds of batches that are created. Shares add up to one."""

    lines: tuple[int, int] = (100, 600)
    poison: Sequence[str] = HARMLESS
    poisoned: float = 0.12
    cancelled: float = 0.15
    embeddings: float = 0.2
    dependent: float = 0.4  # wait for one or two of the batches that are open
    models: tuple[str, str] = (MODEL, EMBED_MODEL)
    judged: bool = True
    responses: int = 2  # in the background, open at once
    stores: int = 3  # of vectors, kept at once; with them a folder that one more store follows
    repeated: bool = True  # questions to the caches
    tuned: int = 0  # fine-tuning jobs, open at once; with them questions to what they trained
    evaluated: int = 0  # runs of evals, open at once
    pipelines: int = 0  # open at once
    aliased: int = 0  # clients of an alias that moves; with them promotions
    limited: bool = False  # projects with limits


def make_job(number: int, rng: random.Random, mix: Mix, endpoint: str = "", poison: str = "", lines: int = 0) -> Job:
    """Make a batch of prompts that nobody else asks."""
    if not endpoint:
        endpoint = ENDPOINTS[3] if rng.random() < mix.embeddings else rng.choice(ENDPOINTS[:3])
    key = f"job-{number:04d}"
    names = [f"{key}-{line:04d}" for line in range(lines or rng.randint(*mix.lines))]
    prompts = {name: f"Say {rng.getrandbits(48):012x} to {name}" for name in names}
    if not poison and mix.poison and rng.random() < mix.poisoned:
        poison = rng.choice(list(mix.poison))
    if poison:
        prompts[rng.choice(names)] += f" {poison}"
    job = Job(key, endpoint, mix.models[endpoint == ENDPOINTS[3]], prompts, judged=mix.judged)
    if rng.random() < 0.5:
        job.webhook_path, job.secret = f"ok/{key}", new_secret()
    return job


def _after(job: Job) -> str:
    return f", after {' and '.join(one.key for one in job.after)}" if job.after else ""


@dataclass(slots=True)
class Load:
    """Everything the clients know. `width` batches are kept open while `feeding`."""

    client: Client
    receiver: Receiver
    journal: Journal
    rng: random.Random
    library: Path  # the folder that a store follows
    strangers: Client  # another project's
    mix: Mix = field(default_factory=Mix)
    width: int = 5
    limited: LimitedProjects | None = None
    jobs: list[Job] = field(default_factory=list)
    polls: dict[str, list[Batch]] = field(default_factory=dict)
    told: list[Told] = field(default_factory=list)
    cancel_seconds: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)  # when something was seen to go on
    feeding: threading.Event = field(default_factory=threading.Event)
    endpoint_id: str = ""
    endpoint_secret: str = ""
    askers: Askers = field(init=False)
    store_clients: StoreClients = field(init=False)
    source_client: SourceClient = field(init=False)
    repeaters: tuple[Repeater, ...] = field(init=False)
    tuners: Tuners = field(init=False)
    evaluators: Evaluators = field(init=False)
    pipeline_clients: PipelineClients = field(init=False)
    alias_clients: AliasClients = field(init=False)
    promotion_clients: PromotionClients = field(init=False)
    routed_batches: RoutedBatches = field(init=False)
    _heard: int = 0
    _due: list[tuple[float, Job]] = field(default_factory=list)
    _asked: dict[str, float] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = random.Random(self.rng.getrandbits(32))
        model, judged = self.mix.models[0], self.mix.judged
        moved = lambda: self.moved.append(time.monotonic())  # noqa: E731
        self.askers = Askers(self.client, self.journal, rng, model, judged, self.mix.responses, moved)
        rng = random.Random(self.rng.getrandbits(32))
        self.store_clients = StoreClients(self.client, self.journal, rng, self.mix.stores, moved)
        rng = random.Random(self.rng.getrandbits(32))
        self.source_client = SourceClient(self.client, self.journal, rng, self.library, moved)
        asking = {"ours": self.client, "theirs": self.strangers}
        self.repeaters = tuple(Repeater(client, self.journal, rng, name) for name, client in asking.items())
        rng = random.Random(self.rng.getrandbits(32)) if self.mix.tuned else rng
        self.tuners = Tuners(self.client, self.journal, rng, self.mix.tuned, moved)
        rng = random.Random(self.rng.getrandbits(32)) if self.mix.evaluated else rng
        self.evaluators = Evaluators(self.client, self.journal, rng, self.mix.evaluated, moved, model=model)
        rng = random.Random(self.rng.getrandbits(32)) if self.mix.pipelines else rng
        self.pipeline_clients = PipelineClients(self.client, self.journal, rng, self.mix.pipelines, moved, model=model)
        rng = random.Random(self.rng.getrandbits(32)) if self.mix.aliased else rng
        self.alias_clients = AliasClients(self.client.twin(), self.journal, rng, self.told, moved)
        two = 2 * bool(self.mix.aliased)
        promoters = PromotionClients(self.client, self.journal, rng, two, moved, tuned=lambda: self.tuners.results)
        self.promotion_clients, is_there = promoters, lambda: promoters.is_set_up
        self.routed_batches = RoutedBatches(self.client, self.journal, rng, two // 2, moved, is_there=is_there)

    def __enter__(self) -> "Load":
        self.endpoint_id, self.endpoint_secret = self.client.listen(self.receiver)
        works = [self._feed, self._poll, self._ask, self._hear]
        works += [self._keep_stores, self._watch_stores, self._read_stores] if self.mix.stores else []
        works += [self._keep_folder, self._read_folder] if self.mix.stores else []
        works += [self._repeat] if self.mix.repeated else []
        works += [self._tune, self._ask_tuned] if self.mix.tuned else []
        works += [self._evaluate] if self.mix.evaluated else []
        works += [self._pipe] if self.mix.pipelines else []
        works += [self._move, self._promote] + [self._ask_alias] * self.mix.aliased if self.mix.aliased else []
        works += [self._spend, self._meter, self._revoke] if self.limited else []
        for work in works:
            thread = threading.Thread(target=self._guarded, args=(work,), name=work.__name__, daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        for client in (*self.clients, self.alias_clients.client):
            client.sdk.close()

    @property
    def clients(self) -> list[Client]:
        return [self.client, self.strangers, *(self.limited.clients if self.limited else ())]

    @property
    def open(self) -> list[Job]:
        return [job for job in self.jobs if not self._ended(job)]

    def status(self, job: Job) -> str:
        polls = self.polls.get(job.key)
        return polls[-1].status if polls else ""

    def new_job(self, endpoint: str = "", poison: str = "", lines: int = 0) -> Job:
        with self._lock:
            job = make_job(len(self.jobs), self.rng, self.mix, endpoint, poison, lines)
            self.jobs.append(job)
        return job

    def submit(self, job: Job) -> Job:
        self.client.submit(job, self.receiver)
        self.journal.note(f"{job.key} is {job.batch_id}: {len(job.prompts)} lines for {job.endpoint}{_after(job)}")
        self.moved.append(time.monotonic())
        return job

    def cancel(self, job: Job) -> None:
        asked = time.monotonic()
        job.cancelled = True
        if self.client.cancel(job):
            self._asked[job.key] = asked
            self.journal.note(f"{job.key} is to be cancelled")

    def await_terminal(self, jobs: Sequence[Job], seconds: float) -> bool:
        """Return whether all of them end in time."""
        deadline = time.monotonic() + seconds
        while not all(self._ended(job) for job in jobs):
            if time.monotonic() > deadline:
                return False
            pause(0.05)
        return True

    def _ended(self, job: Job) -> bool:
        return self.status(job) in TERMINAL

    def _guarded(self, work: Callable[[], None]) -> None:
        """Run a client's work in a thread; record a violation when it dies."""
        while not self._stop.is_set():
            try:
                work()
            except openai.OpenAIError as error:
                self.journal.violation(f"{work.__name__}: {type(error).__name__} {error}")
            self._stop.wait(0.05)

    def _feed(self) -> None:
        self._cancel_due()
        if not self.feeding.is_set() or len(self.open) >= self.width:
            return
        job, accepted = self.new_job(), [one for one in self.open if one.batch_id]
        if accepted and self.rng.random() < self.mix.dependent:
            job.after = self.rng.sample(accepted, min(len(accepted), self.rng.randint(1, 2)))
        self.submit(job)
        if self.rng.random() < self.mix.cancelled:
            self._due.append((time.monotonic() + self.rng.uniform(0, 4), job))

    def _cancel_due(self) -> None:
        for due in [due for due in self._due if due[0] <= time.monotonic()]:
            self._due.remove(due)
            self.cancel(due[1])

    def _poll(self) -> None:
        for job in [job for job in self.open if job.batch_id]:
            batch = self.client.look(lambda sdk, job=job: sdk.batches.retrieve(job.batch_id))
            if batch is not None:
                self._seen(job, batch)
        self._stop.wait(_POLL_SECONDS)

    def _ask(self) -> None:
        self.askers.step(feeding=self.feeding.is_set())
        self._stop.wait(_POLL_SECONDS)

    def _keep_stores(self) -> None:
        self.store_clients.step(feeding=self.feeding.is_set())
        self._stop.wait(2 * _POLL_SECONDS)

    def _watch_stores(self) -> None:
        self.store_clients.watch()
        self._stop.wait(2 * _POLL_SECONDS)

    def _read_stores(self) -> None:
        if self.feeding.is_set():
            self.store_clients.read()
        self._stop.wait(_POLL_SECONDS)

    def _keep_folder(self) -> None:
        self.source_client.step(feeding=self.feeding.is_set())
        self._stop.wait(_POLL_SECONDS)

    def _read_folder(self) -> None:
        if self.feeding.is_set():
            self.source_client.read()
        self._stop.wait(2 * _POLL_SECONDS)

    def _repeat(self) -> None:
        for one in self.repeaters:
            if self.feeding.is_set():
                one.step()
        self._stop.wait(_POLL_SECONDS)

    def _tune(self) -> None:
        self.tuners.step(feeding=self.feeding.is_set())
        self._stop.wait(2 * _POLL_SECONDS)

    def _ask_tuned(self) -> None:
        self.tuners.ask(feeding=self.feeding.is_set())
        self._stop.wait(_POLL_SECONDS)

    def _evaluate(self) -> None:
        self.evaluators.step(feeding=self.feeding.is_set())
        self._stop.wait(_POLL_SECONDS)

    def _pipe(self) -> None:
        self.pipeline_clients.step(feeding=self.feeding.is_set())
        self._stop.wait(_POLL_SECONDS)

    def _ask_alias(self) -> None:
        self.alias_clients.ask(feeding=self.feeding.is_set())

    def _move(self) -> None:
        self.alias_clients.step(feeding=self.feeding.is_set())
        self._stop.wait(_POLL_SECONDS)

    def _promote(self) -> None:
        self.promotion_clients.step(feeding=self.feeding.is_set())
        self.routed_batches.step(feeding=self.feeding.is_set())
        self._stop.wait(_POLL_SECONDS)

    def _spend(self) -> None:
        assert self.limited is not None
        self.limited.budgeted.step(feeding=self.feeding.is_set())
        self._stop.wait(2 * _POLL_SECONDS)

    def _meter(self) -> None:
        assert self.limited is not None
        if self.feeding.is_set():
            self.limited.metered.ask()
        self._stop.wait(_POLL_SECONDS)

    def _revoke(self) -> None:
        assert self.limited is not None
        self.limited.revoked.step(feeding=self.feeding.is_set())
        self._stop.wait(2 * _POLL_SECONDS)

    def _seen(self, job: Job, batch: Batch) -> None:
        polls = self.polls.setdefault(job.key, [])
        if polls and polls[-1] == batch:
            return
        if not polls or polls[-1].status != batch.status:
            self.journal.note(f"{job.key} {batch.status}")
        polls.append(batch)
        self.moved.append(time.monotonic())
        if batch.status == "cancelled" and job.key in self._asked:
            self.cancel_seconds.append(time.monotonic() - self._asked.pop(job.key))

    def _hear(self) -> None:
        for request in self._undelivered():
            path = request.path.removeprefix("/")
            try:
                self.told.append(verified(request, self._secret(path)))
            except WebhookVerificationError as error:
                self.journal.violation(f"a webhook to {path} is not signed well: {error}")
        self._stop.wait(_POLL_SECONDS)

    def _undelivered(self) -> Iterator[Received]:
        for request in self.receiver.requests[self._heard :]:
            self._heard += 1
            yield request

    def _secret(self, path: str) -> str:
        return next((job.secret for job in self.jobs if job.webhook_path == path), self.endpoint_secret)
