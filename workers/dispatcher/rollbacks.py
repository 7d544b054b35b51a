"""Roll aliases back whose new models do worse than the incumbent, and confirm that the incumbent answers again.

    requests of the last ten minutes ─▶ compare each target with the incumbent ─▶ roll back, in one transaction
        ─▶ ask the alias as a client does ─▶ the incumbent answered: `model.alias.rolled_back`
                                         └─▶ else ask again in the next round

A target does worse when its share of errors is higher by 5 points, or when it is slower: its 95th percentile of times,
which is estimated from buckets, at least twice that of the incumbent, and its mean above one and a half of that.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

import msgspec
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import Conflict, NightmillError
from jobs.fleet import access, routing
from jobs.fleet.access import Work
from jobs.fleet.models_file import Registry
from jobs.fleet.routing import NotServed, NotYet, Route
from jobs.ids import new_id
from jobs.inference import request_counts
from jobs.inference.client import InferenceClient, last_entry
from jobs.inference.interactive import QueuedRequest
from jobs.inference.request_counts import ModelRequests
from jobs.ledger import audit
from jobs.registry import aliases
from jobs.registry.aliases import WeightedModel
from jobs.registry.tables import Alias
from jobs.requests.endpoints import CHAT, COMPLETIONS, EMBEDDINGS
from jobs.settings import Settings

log = logging.getLogger(__name__)

MIN_REQUESTS: Final = 50  # of each side
MAX_POINTS: Final = 5.0  # of errors more than the incumbent has
MAX_SLOWER: Final = 2.0  # times the 95th percentile of the incumbent
_MAX_MEAN: Final = 1.5  # times its mean: buckets are wide
_SPAN: Final = 600  # seconds whose requests are compared
_MINUTE: Final = 60
_SETTLED: Final = 5.0  # seconds until every web process follows a move
_ANSWER: Final = 30.0  # seconds for an answer
_ACTOR: Final = "dispatcher"
#: What the alias is asked, at the first of these endpoints that its model serves.
_BODIES: Final[dict[str, dict[str, Any]]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1},
    COMPLETIONS: {"prompt": "Hello", "max_tokens": 1},
    EMBEDDINGS: {"input": "Hello"},
}


class Rollbacks:
    """Compare, roll back and confirm, a step a round. A worker that hangs holds a thread, and never the leader."""

    def __init__(self, config: Settings, db: Database, registry: Callable[[], Registry | None]) -> None:
        self._config, self._db, self._registry = config, db, registry
        self._probe: _Probe | None = None
        self._compared = 0.0  # the time from which the alias was watched that was compared last
        self._last = ""  # the roll-back that was probed last

    def run(self) -> None:
        """Do what is due. Raises DatabaseBusy."""
        with self._db.read() as session:
            watched = aliases.list_for_comparison(session, self._compared)
            worse = [(alias.project_id, alias.name) for alias in watched if find_worse(session, alias)]
        is_last = len(watched) < aliases.MAX_WATCHED
        self._compared = 0.0 if is_last else watched[-1].watched_since or 0.0
        for project_id, name in worse:
            self._roll_back(project_id, name)
        if self._probe is None:
            self._begin_probe()
        elif not self._probe.is_alive():
            self._end_probe(self._probe)
            self._probe = None

    def _roll_back(self, project_id: str, name: str) -> None:
        try:
            with self._db.write() as session:
                reason = roll_back(session, project_id, name)
        except Conflict as error:  # the project has all the moves that it may have
            log.error("alias_not_rolled_back", extra={"alias": name, "reason": error.message})  # noqa: TRY400
            return
        self._db.breathe()
        if reason:
            log.warning("alias_rolled_back", extra={"alias": name, "reason": reason})

    def _begin_probe(self) -> None:
        registry = self._registry()
        with self._db.read() as session:
            alias = aliases.find_rollback(session, self._last)
            if alias is None or registry is None or alias.rollback_id is None:
                return
            self._last = alias.rollback_id
            if now() - alias.updated_at < _SETTLED:
                return
            probed = _find_route(session, self._config, registry, alias)
        if probed is not None:
            self._probe = _Probe(self._config, alias, *probed)
            self._probe.start()

    def _end_probe(self, probe: "_Probe") -> None:
        if not probe.is_answered:
            log.warning("alias_probe_failed", extra={"alias": probe.name_of_alias})
            return
        with self._db.write() as session:
            alias = aliases.find(session, probe.name_of_alias, probe.project_id, lock=True)
            confirmed = alias is not None and aliases.confirm_rollback(session, alias, probe.move_id)
        self._db.breathe()
        if confirmed:
            log.info("alias_rollback_confirmed", extra={"alias": probe.name_of_alias})


def find_worse(session: Session, alias: Alias) -> tuple[str, dict[str, Any]] | None:
    """Return why a target of a watched alias is worse than the incumbent, with the numbers; None where none is."""
    start = max(now() - _SPAN, alias.watched_since or 0.0)
    first = -int(-start // _MINUTE) * _MINUTE  # the first whole minute: the one of the move has requests of before
    requests = request_counts.summarize(session, alias.project_id, first, int(now()) + _MINUTE)
    targets = aliases.routing_of(alias).targets
    sides = [(target.model, requests.get(target.model)) for target in targets]
    model, incumbent = sides[0]
    for name, side in sides[1:]:
        if incumbent and side and (reason := compare(incumbent, side)):
            return f"{name} {reason} of {model}", {model: _numbers(incumbent), name: _numbers(side)}
    return None


def compare(incumbent: ModelRequests, side: ModelRequests) -> str | None:
    """Return how the requests of a side are worse than those of the incumbent; None where they are not, or too few."""
    if min(incumbent.requests, side.requests) < MIN_REQUESTS:
        return None
    shares = [100 * sum(each.errors.values()) / each.requests for each in (side, incumbent)]
    if shares[0] - shares[1] > MAX_POINTS:
        return f"has {shares[0]:.1f} % errors, above the {shares[1]:.1f} %"
    times = side.distributions["duration"], incumbent.distributions["duration"]
    p95, former = (each.quantile(0.95) or 0.0 for each in times)
    mean, former_mean = (each.mean or 0.0 for each in times)
    if min(each.count for each in times) < MIN_REQUESTS or mean <= _MAX_MEAN * former_mean:
        return None
    return f"has a p95 of {p95:.2f} s, twice the {former:.2f} s" if p95 >= MAX_SLOWER * former else None


def roll_back(session: Session, project_id: str, name: str) -> str | None:
    """Let an alias stand for its incumbent alone; return why, None where no target is worse now. Raises Conflict."""
    alias = aliases.find(session, name, project_id, lock=True)
    worse = find_worse(session, alias) if alias is not None and alias.watched_since is not None else None
    if alias is None or worse is None:
        return None
    reason, numbers = worse
    former = aliases.routing_of(alias)
    restored = msgspec.structs.replace(former, targets=(WeightedModel(former.incumbent, aliases.WHOLE),))
    move = aliases.move(session, alias, restored, "rollback", actor=_ACTOR, reason=reason[:512], gate=numbers)
    details = {"name": name, "model": alias.model, "reason": reason, "former": former.to_json()}
    audit.record(session, actor=_ACTOR, action="alias.rollback", target=move.id, project_id=project_id, details=details)
    return reason


def _numbers(requests: ModelRequests) -> dict[str, Any]:
    duration = requests.distributions["duration"]
    errors = sum(requests.errors.values())
    return {"requests": requests.requests, "errors": errors, "p95": duration.quantile(0.95), "mean": duration.mean}


def _find_route(session: Session, config: Settings, registry: Registry, alias: Alias) -> tuple[str, Route] | None:
    """Return the endpoint and the way by which clients of an alias reach the restored model; None while they do not."""
    for endpoint in _BODIES:
        try:
            route = access.resolve(session, config, registry, Work(alias.project_id, None, alias.name, endpoint))
        except (NotServed, NotYet):
            continue
        if route.model == alias.model and routing.is_served(session, registry, route.queue, route.model):
            return endpoint, route
    return None


class _Probe(threading.Thread):
    """Ask the restored model of an alias, as a client does, in a daemon thread that keeps no process from ending."""

    def __init__(self, config: Settings, alias: Alias, endpoint: str, route: Route) -> None:
        super().__init__(name="alias-probe", daemon=True)
        self.project_id, self.name_of_alias, self.move_id = alias.project_id, alias.name, alias.rollback_id or ""
        self.is_answered = False
        self._config, self._endpoint, self._route = config, endpoint, route

    def run(self) -> None:
        try:
            self.is_answered = asyncio.run(self._ask())
        except (NightmillError, TimeoutError) as error:
            log.warning("alias_probe_unanswered", extra={"alias": self.name_of_alias, "error": str(error)})

    async def _ask(self) -> bool:
        """Return whether the model answers. Raises TimeoutError, and what `InferenceClient.submit` raises."""
        client = InferenceClient(self._config)
        request = QueuedRequest(
            id=new_id("req_"),
            url=self._endpoint,
            body=msgspec.json.encode({"model": self._route.model, **_BODIES[self._endpoint]}),
            tenant=self.project_id,
            deadline=now() + _ANSWER,
        )
        try:
            async with asyncio.timeout(_ANSWER):
                end = await last_entry(client.submit(self._route.queue, request, _is_served))
        finally:
            await client.close()
        return 200 <= end.status < 300


async def _is_served() -> bool:
    """Wait for the answer, up to its deadline, whatever becomes of the workers."""
    return True
