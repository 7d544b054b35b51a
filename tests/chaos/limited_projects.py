"""Projects with limits, beside the batches of a run, and the admin API that makes and changes them.

    budgeted   batches of a project with a spend limit, which is raised a step whenever it is reached
    metered    interactive requests above the rate limit of their project, with a key that permits nothing else
    revoked    batches whose keys are revoked while they run

All models that the stubs serve have prices, and the organization has a spend limit that nobody reaches: so every shard
and every interactive request of the run counts towards a limit.
"""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import openai
from openai.resources.admin.organization import Organization

from jobs.requests.token_estimates import input_tokens
from tests.chaos.job_clients import JobClients
from tests.chaos.journal import Journal
from tests.support.receiver import Receiver
from tests.support.stub_engine import STAMP
from tests.support.system import MODEL, System, pause
from tests.support.usage_oracle import (
    MICROS_PER_CENT,
    PRICED_MODELS,
    PRICES,
    LimitedBatch,
    SpendSample,
    Tokens,
    tokens_of,
)

if TYPE_CHECKING:
    from tests.chaos.load import Client

#: Interactive requests a minute; the client asks for several times as many.
RATE: Final = 10
#: What a metered prompt begins with.
METERED: Final = "Count "
_MAX_BODY_BYTES: Final = 200  # of a metered request
_STEP_CENTS: Final = 15  # the cost of about sixty lines
_UNREACHED_CENTS: Final = 10**9
_LINES: Final = (60, 150)
_ENDPOINTS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_RAISE_SECONDS: Final = (0.0, 3.0)  # from the look that sees the limit reached
_REVOKE_SECONDS: Final = (0.0, 3.0)
_REFUSED_SECONDS: Final = 3.0  # from the revocation of a key to the last request that it may open: 2, and a request
_TRESPASS_EVERY: Final = 20  # metered requests
_DAY: Final = 86_400


@dataclass(frozen=True, slots=True)
class LimitedProject:
    """A project, the service account that owns its keys, and a client of the first key, which permits all."""

    id: str
    account_id: str
    client: "Client"


@dataclass(frozen=True, slots=True)
class Administrator:
    """The admin API. `new_client` returns a client of a project's key."""

    client: "Client"
    new_client: Callable[[str], "Client"]

    @property
    def organization(self) -> Organization:
        return self.client.sdk.admin.organization

    def create_project(self, name: str) -> LimitedProject:
        project = self.organization.projects.create(name=name)
        account = self.organization.projects.service_accounts.create(project.id, name=name)
        assert account.api_key is not None
        return LimitedProject(project.id, account.id, self.new_client(account.api_key.value))

    def create_key(self, project: LimitedProject, scopes: list[str]) -> tuple[str, "Client"]:
        """Create a key of a project; return its id, and a client of it."""
        key = self.organization.projects.service_accounts.api_keys.create(
            project.account_id, project_id=project.id, scopes=scopes
        )
        return key.id, self.new_client(key.value)

    def set_spend_limit(self, project: LimitedProject, cents: int) -> None:
        self.organization.projects.spend_limit.update(
            project.id, currency="USD", interval="month", threshold_amount=cents
        )

    def spend(self, project: LimitedProject) -> int:
        """Return what a project has spent this month; in the days around a new month, in the month of more."""
        months: dict[int, float] = {}
        costs = self.organization.usage.costs(**days_around(), project_ids=[project.id])
        for bucket in costs.data:
            month = time.gmtime(bucket.start_time).tm_mon
            amounts: list[Any] = [result.amount for result in bucket.results]  # type: ignore[union-attr]
            months[month] = months.get(month, 0.0) + sum(amount.value for amount in amounts if amount)
        return round(max(months.values()) * 1_000_000)


def days_around() -> dict[str, int]:
    """Return the times of a query over all days that a clock of the run may have shown."""
    at = int(time.time())
    return {"start_time": at - 2 * _DAY, "end_time": at + 2 * _DAY, "limit": 7}


def new_batch(key: str, rng: random.Random) -> LimitedBatch:
    names = [f"{key}-{line:03d}" for line in range(rng.randint(*_LINES))]
    prompts = {name: f"Say {rng.getrandbits(48):012x} to {name}" for name in names}
    return LimitedBatch(key, rng.choice(_ENDPOINTS), MODEL, prompts)


@dataclass
class LimitedBatches(JobClients[LimitedBatch]):
    """Batches of a project with limits."""

    admin: Administrator = field(kw_only=True)
    project: LimitedProject = field(kw_only=True)
    receiver: Receiver = field(kw_only=True)
    noun: str = field(kw_only=True)  # what their keys begin with

    def submit(self) -> None:
        self.create(self.client)

    def create(self, client: "Client") -> LimitedBatch:
        batch = new_batch(f"{self.noun}-{len(self.jobs):03d}", self.rng)
        self.jobs.append(batch)
        client.submit(batch, self.receiver)
        self.journal.note(f"{batch.key} is {batch.id}: {len(batch.prompts)} lines for {batch.endpoint}")
        self.moved()
        return batch

    def look(self, job: LimitedBatch) -> None:
        batch = self.client.look(lambda sdk: sdk.batches.retrieve(job.id))
        if batch is not None and batch.status != job.status:
            job.status = batch.status
            self.journal.note(f"{job.key} {batch.status}")
            self.moved()


@dataclass
class BudgetedClients(LimitedBatches):
    """Batches that wait for a spend limit again and again. `samples` has what was spent at each limit."""

    limit: int = _STEP_CENTS
    samples: list[SpendSample] = field(default_factory=list)
    _is_reached: bool = False

    def look(self, job: LimitedBatch) -> None:
        super().look(job)
        if job.ended or self._is_reached or not self._waits(job):
            return
        if self.sample().spent >= self.limit * MICROS_PER_CENT:
            self._is_reached = True
            self.later(self.rng.uniform(*_RAISE_SECONDS), self._raise)

    def _waits(self, job: LimitedBatch) -> bool:
        shown: Any = self.client.look(lambda sdk: sdk.get(f"/jobs/{job.id}", cast_to=object))
        return shown is not None and shown["waiting_for"] == "waiting_for_spend_limit"

    def sample(self) -> SpendSample:
        """Look at what is spent."""
        self.samples.append(SpendSample(self.limit * MICROS_PER_CENT, self.admin.spend(self.project)))
        return self.samples[-1]

    def _raise(self) -> None:
        limit = self.sample().spent // MICROS_PER_CENT + _STEP_CENTS
        self.admin.set_spend_limit(self.project, limit)
        self.journal.note(f"the spend limit is raised from {self.limit} to {limit} cents")
        self.limit, self._is_reached = limit, False


@dataclass
class RevokedClients(LimitedBatches):
    """Batches whose keys are revoked while they run. `keys` is how many were revoked."""

    patience: float = field(kw_only=True)
    keys: int = 0

    def submit(self) -> None:
        key_id, client = self.admin.create_key(self.project, [])
        batch = self.create(client)
        self.later(self.rng.uniform(*_REVOKE_SECONDS), lambda: self._revoke(batch, key_id, client))

    def _revoke(self, batch: LimitedBatch, key_id: str, client: "Client") -> None:
        batch.cancelled = True
        with suppress(openai.NotFoundError):  # an earlier try revoked it, and its answer was lost
            self.admin.organization.projects.api_keys.delete(key_id, project_id=self.project.id)
        self.keys += 1
        self.journal.note(f"the key of {batch.key} is revoked")
        pause(_REFUSED_SECONDS * self.patience)
        try:
            models = client.look(lambda sdk: sdk.models.list())
        except openai.AuthenticationError:
            models = None
        if models is not None:
            self.journal.violation(f"the key of {batch.key} was revoked, and lists models")
        client.sdk.close()


@dataclass(frozen=True, slots=True)
class MeteredAnswer:
    """When an answer came, and the tokens that it took."""

    at: float
    tokens: Tokens


@dataclass(slots=True)
class MeteredClient:
    """Interactive requests of a key that permits them and nothing else, above the rate limit of their project."""

    client: "Client"
    journal: Journal
    rng: random.Random
    project_id: str
    answers: list[MeteredAnswer] = field(default_factory=list)
    began: float = 0.0
    requests: int = 0
    refusals: int = 0  # by the rate limit

    @property
    def estimated(self) -> Tokens:
        """Return the most that requests without an answer count: each that was cut short counts by its bytes."""
        cut = self.requests - self.refusals - len(self.answers)
        return Tokens(input=cut * input_tokens(_MAX_BODY_BYTES))

    def ask(self) -> None:
        self.began = self.began or time.monotonic()
        self.requests += 1
        prompt = f"{METERED}{self.rng.getrandbits(48):012x} {STAMP}"  # so that it is no rework to ask twice
        messages: Any = [{"role": "user", "content": prompt}]
        try:
            answer = self.client.look(
                lambda sdk: sdk.chat.completions.create(model=MODEL, messages=messages, max_tokens=16)
            )
        except openai.RateLimitError as error:
            self.refusals += error.code == "rate_limit_exceeded"
        except openai.InternalServerError:  # of an engine that ended: `judge_broken`
            pass
        else:
            self.answers += [] if answer is None else [MeteredAnswer(time.monotonic(), tokens_of(prompt))]
        if self.requests % _TRESPASS_EVERY == 0:
            self._trespass()

    def _trespass(self) -> None:
        """List files, which the key does not permit."""
        try:
            files = self.client.look(lambda sdk: sdk.files.list())
        except openai.PermissionDeniedError:
            return
        if files is not None:
            self.journal.violation("a key that permits requests to models alone lists files")


@dataclass(frozen=True, slots=True)
class LimitedProjects:
    """The clients of all projects with limits."""

    admin: Administrator
    budgeted: BudgetedClients
    metered: MeteredClient
    revoked: RevokedClients

    @property
    def clients(self) -> "list[Client]":
        return [self.admin.client, self.budgeted.client, self.metered.client, self.revoked.client]


def create_limited_projects(
    admin: Administrator,
    journal: Journal,
    rng: random.Random,
    receiver: Receiver,
    moved: Callable[[], None],
    patience: float,
) -> LimitedProjects:
    """Create the projects with their limits, before any work of theirs."""
    organization = admin.organization
    organization.spend_limit.update(currency="USD", interval="month", threshold_amount=_UNREACHED_CENTS)
    budgeted, metered, revoked = map(admin.create_project, ("budgeted", "metered", "revoked"))
    organization.projects.rate_limits.update_rate_limit(
        f"rl-{MODEL}", project_id=metered.id, max_requests_per_1_minute=RATE
    )
    _, asker = admin.create_key(metered, ["api.model.request"])
    shared: Any = {"admin": admin, "receiver": receiver}
    spenders = BudgetedClients(budgeted.client, journal, rng, 2, moved, project=budgeted, noun="budgeted", **shared)
    admin.set_spend_limit(budgeted, spenders.limit)
    enders = RevokedClients(
        revoked.client, journal, rng, 1, moved, project=revoked, noun="revoked", patience=patience, **shared
    )
    return LimitedProjects(admin, spenders, MeteredClient(asker, journal, rng, metered.id), enders)


def set_prices(system: System) -> None:
    """Set the prices of all models that the stubs serve, from before any time that a clock of the run may show."""
    prices = [word for kind, price in PRICES.items() for word in (f"--{kind}", str(price))]
    for model in PRICED_MODELS:
        output_of(system, "prices", "set", model, *prices, "--since", "2020-01-01")


def output_of(system: System, *arguments: str) -> str:
    """Return the output of a command. Raises RuntimeError."""
    result = system.cli(*arguments)
    if result.returncode:
        raise RuntimeError(result.stderr)
    return result.stdout.strip()
