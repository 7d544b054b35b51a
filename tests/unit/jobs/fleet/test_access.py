"""Which key and project may have which model asked, by each rule of access."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet import access, routing, workers
from jobs.fleet.access import AccessDenied, Work
from jobs.fleet.models_file import Registry
from jobs.fleet.routing import NotServed
from jobs.fleet.tables import Model
from jobs.ledger import kinds
from jobs.ledger.tables import Job
from jobs.platform.storage import DiskStorage
from jobs.queues import Queue
from jobs.registry import aliases
from jobs.registry import models as tuned_models
from jobs.registry.aliases import AliasRouting, WeightedModel
from jobs.registry.tables import Alias
from jobs.requests.endpoints import CHAT
from jobs.security import keys, permissions, roles
from jobs.security.model_permissions import set_rule
from jobs.security.tables import Account, ApiKey, Project
from jobs.settings import Settings
from tests.support import tuned_adapters

ROOT = Path(__file__).parents[4]
MODEL, ALIAS, OTHER = "smollm2-135m-instruct", "gpt-4o-mini", "all-minilm-l6-v2"
TUNED = f"ft:{MODEL}:acme::abc"
OWN = "ft:gpt-4o-mini:old::abc"


class Tenant:
    """A project with one key."""

    def __init__(self, session: Session, name: str) -> None:
        self.key = session.get_one(ApiKey, keys.id_of(keys.create_key(session, name)))
        self.project = session.get_one(Project, self.key.project_id)


Rule = Callable[[Session, Tenant], object]


def deny(*names: str) -> Rule:
    return lambda session, tenant: set_rule(session, tenant.project.id, "deny_list", names)


def allow(*names: str) -> Rule:
    return lambda session, tenant: set_rule(session, tenant.project.id, "allow_list", names)


def name_own(target: str, name: str = OWN) -> Rule:
    """Return a rule that makes an alias of a project, which its own rules follow."""

    def add(session: Session, tenant: Tenant) -> None:
        at = {"created_at": 1.0, "updated_at": 1.0, "created_by": "test"}
        session.add(Alias(project_id=tenant.project.id, name=name, model=target, **at))

    return add


def both(*rules: Rule) -> Rule:
    return lambda session, tenant: [rule(session, tenant) for rule in rules]


def revoke(_session: Session, tenant: Tenant) -> None:
    tenant.key.revoked_at = now()


def expire(_session: Session, tenant: Tenant) -> None:
    tenant.key.expires_at = now() - 1


def archive(_session: Session, tenant: Tenant) -> None:
    tenant.project.archived_at = now()


def resolve(session: Session, tenant: Tenant, model: str, **changes: Any) -> str:
    """Return the queue, or the code of the refusal."""
    config = Settings(openai_aliases=True)
    work = replace(Work(tenant.project.id, tenant.key.id, model, CHAT), **changes)
    session.flush()
    try:
        return access.resolve(session, config, Registry.load(config), work).queue
    except AccessDenied as denial:
        return denial.code


RULES: dict[str, tuple[Rule, str, str]] = {
    "live key": (lambda *_: None, MODEL, Queue.GENERATE),
    "revoked key": (revoke, MODEL, "key_revoked"),
    "expired key": (expire, MODEL, "key_expired"),
    "archived project": (archive, MODEL, "project_archived"),
    "denied model": (deny(MODEL), MODEL, "model_not_found"),
    "alias of a denied model": (deny(MODEL), ALIAS, "model_not_found"),
    "model with a denied alias": (deny(ALIAS), MODEL, "model_not_found"),
    "tuned model of a denied base": (deny(MODEL), TUNED, "model_not_found"),
    "tuned model with a denied alias of its base": (deny(ALIAS), TUNED, "model_not_found"),
    "denied tuned model": (deny(TUNED), TUNED, "model_not_found"),
    "base of a denied tuned model": (deny(TUNED), MODEL, Queue.GENERATE),
    "other model than the denied one": (deny(OTHER), MODEL, Queue.GENERATE),
    "model of the list": (allow(MODEL), ALIAS, Queue.GENERATE),
    "tuned model of a base in the list": (allow(MODEL), TUNED, Queue.GENERATE),
    "base of a tuned model in the list": (allow(TUNED), MODEL, "model_not_found"),
    "model that is not in the list": (allow(OTHER), MODEL, "model_not_found"),
    "empty list": (allow(), MODEL, "model_not_found"),
}
#: The rules of projects that have an alias, the name that is asked for, and the model that answers or the refusal.
ALIASES: dict[str, tuple[Rule, str, str]] = {
    "own alias": (name_own(MODEL), OWN, MODEL),
    "own alias of a tuned model": (name_own(TUNED), OWN, TUNED),
    "own alias of a denied model": (both(name_own(MODEL), deny(MODEL)), OWN, "model_not_found"),
    "own alias that is denied": (both(name_own(MODEL), deny(OWN)), OWN, MODEL),
    "own alias of a model in the list": (both(name_own(MODEL), allow(MODEL)), OWN, MODEL),
    "own alias of a model that is not in the list": (both(name_own(MODEL), allow(OTHER, OWN)), OWN, "model_not_found"),
    "own alias with the name of an alias of the file": (name_own(TUNED, ALIAS), ALIAS, TUNED),
    "own alias with the name of a model": (name_own(TUNED, MODEL), MODEL, MODEL),
    "own alias with the name of a tuned model": (name_own(MODEL, TUNED), TUNED, TUNED),
    "own alias of an alias": (both(name_own(MODEL, "a"), name_own("a")), OWN, "model_not_found"),
    "own alias and a revoked key": (both(name_own(MODEL), revoke), OWN, "key_revoked"),
}


@pytest.mark.parametrize(("rule", "model", "outcome"), RULES.values(), ids=RULES)
def test_rule_of_a_project_decides_for_its_own_key_alone(
    db: Database, tmp_path: Path, rule: Rule, model: str, outcome: str
) -> None:
    for name in ("acme", "rival"):
        tuned = TUNED.replace("acme", name)
        tuned_adapters.tuned_model(db, DiskStorage(tmp_path / name), tuned, base=MODEL, project=name)
    with db.write() as session:
        tenant, rival = Tenant(session, "acme"), Tenant(session, "rival")
        rule(session, tenant)

        assert resolve(session, tenant, model) == outcome
        assert resolve(session, rival, model.replace("acme", "rival")) == Queue.GENERATE


@pytest.mark.parametrize(("rule", "name", "outcome"), ALIASES.values(), ids=ALIASES)
def test_alias_of_a_project_stands_for_a_model_under_the_rules_of_that_model(
    db: Database, tmp_path: Path, rule: Rule, name: str, outcome: str
) -> None:
    tuned_adapters.tuned_model(db, DiskStorage(tmp_path), TUNED, base=MODEL, project="acme")
    config = Settings(openai_aliases=True)
    registry = Registry.load(config)
    with db.write() as session:
        tenant = Tenant(session, "acme")
        rule(session, tenant)
        session.flush()

        try:
            answered = access.resolve(
                session, config, registry, Work(tenant.project.id, tenant.key.id, name, CHAT)
            ).model
        except NotServed as refusal:
            answered = refusal.code

    assert answered == outcome


def test_alias_does_not_concern_other_projects(db: Database) -> None:
    with db.write() as session:
        name_own(MODEL)(session, Tenant(session, "acme"))
        session.flush()

        with pytest.raises(NotServed):
            resolve(session, Tenant(session, "rival"), OWN)


def test_alias_with_the_name_of_a_deleted_model_stands_for_its_model(db: Database, tmp_path: Path) -> None:
    tuned_adapters.tuned_model(db, DiskStorage(tmp_path), TUNED, base=MODEL, project="acme")
    registry = Registry.load(Settings())
    with db.write() as session:
        tenant = Tenant(session, "acme")
        name_own(OTHER, TUNED)(session, tenant)
        names = [access.model_of_name(session, registry, TUNED, tenant.project.id)]
        tuned_models.delete(session, TUNED, tenant.project.id)
        session.flush()
        names.append(access.model_of_name(session, registry, TUNED, tenant.project.id))

    assert names == [TUNED, OTHER]


def delete(session: Session, tenant: Tenant) -> None:
    tuned_models.delete(session, TUNED, tenant.project.id)


class Canary:
    """An alias of a project with two targets, the incumbent and a tuned model."""

    def __init__(self, session: Session, tenant: Tenant, *fallbacks: str) -> None:
        self.session, self.tenant, self.config = session, tenant, Settings()
        self.registry = Registry.load(self.config)
        routing = AliasRouting((WeightedModel(MODEL, 50), WeightedModel(TUNED, 50)), fallbacks=fallbacks)
        alias = Alias(project_id=tenant.project.id, name=OWN, created_at=1.0, created_by="test")
        aliases.move(session, alias, routing, "create", actor="test")

    def draw(self, **fields: Any) -> str:
        """Return the model that answers, or the code of the refusal."""
        work = Work(self.tenant.project.id, self.tenant.key.id, OWN, CHAT, **fields)
        try:
            return access.resolve(self.session, self.config, self.registry, work).model
        except NotServed as refusal:
            return refusal.code


@pytest.fixture
def tuned(db: Database, tmp_path: Path) -> Database:
    """Return a database with a tuned model of a project."""
    tuned_adapters.tuned_model(db, DiskStorage(tmp_path), TUNED, base=MODEL, project="acme")
    return db


def test_work_draws_by_its_user_where_the_alias_is_sticky_and_by_its_job_else(tuned: Database) -> None:
    with tuned.write() as session:
        tenant = Tenant(session, "acme")
        canary = Canary(session, tenant)
        assert {canary.draw(subject="ann") for _ in range(64)} == {MODEL, TUNED}
        jobs = {canary.draw(job_id="batch_7") for _ in range(16)}
        assert len(jobs) == 1
        assert {canary.draw(job_id=f"batch_{n}") for n in range(64)} == {MODEL, TUNED}

        alias = aliases.find(session, OWN, tenant.project.id, lock=True)
        assert alias is not None
        sticky = AliasRouting(aliases.routing_of(alias).targets, sticky=True)
        aliases.move(session, alias, sticky, "update", actor="test")
        assert len({canary.draw(subject="ann") for _ in range(16)}) == 1
        assert {canary.draw(subject=f"user-{n}") for n in range(64)} == {MODEL, TUNED}


@pytest.mark.parametrize(
    ("rule", "served", "answers"),
    [
        (lambda *_: None, (MODEL,), {MODEL, TUNED}),
        (lambda *_: None, (OTHER,), {OTHER}),
        (lambda *_: None, (), {MODEL, TUNED}),
        (delete, (MODEL, OTHER), {MODEL, OTHER}),
        (delete, (), {MODEL, OTHER}),
        (deny(MODEL), (MODEL, OTHER), {OTHER}),
        (deny(MODEL, OTHER), (MODEL, OTHER), {"model_not_found"}),
        (revoke, (MODEL, OTHER), {"key_revoked"}),
    ],
    ids=["served", "not served", "nothing served", "deleted", "deleted, not served", "denied", "all denied", "revoked"],
)
def test_first_served_fallback_answers_for_a_target_that_cannot(
    tuned: Database, monkeypatch: pytest.MonkeyPatch, rule: Rule, served: tuple[str, ...], answers: set[str]
) -> None:
    monkeypatch.setattr(routing, "is_served", lambda _session, _registry, _queue, name: name in served_names(served))
    monkeypatch.setattr(routing, "_check_serves", lambda *_: None)  # one queue of each endpoint is enough here
    with tuned.write() as session:
        tenant = Tenant(session, "acme")
        canary = Canary(session, tenant, "gone", OTHER)
        rule(session, tenant)
        session.flush()

        assert {canary.draw() for _ in range(64)} == answers


def served_names(models: tuple[str, ...]) -> set[str]:
    """Return the names that workers with these models serve: an adapter is served where its base is."""
    return {*models, *((TUNED,) if MODEL in models else ())}


def test_deleted_target_without_fallback_is_refused(tuned: Database) -> None:
    with tuned.write() as session:
        tenant = Tenant(session, "acme")
        canary = Canary(session, tenant)
        delete(session, tenant)
        session.flush()

        assert {canary.draw() for _ in range(64)} == {MODEL, "model_not_found"}


def test_key_of_another_project_is_refused(db: Database) -> None:
    with db.write() as session:
        tenant, rival = Tenant(session, "acme"), Tenant(session, "rival")

        assert resolve(session, tenant, MODEL, key_id=rival.key.id) == "key_revoked"


def narrow(_session: Session, tenant: Tenant) -> None:
    tenant.key.scopes = ["api.files.read"]


def belong(session: Session, tenant: Tenant) -> None:
    """Make the key that of a person without any role."""
    session.add(Account(id="user_1", email="ann@example.com", created_at=now()))
    tenant.key.owner_id = "user_1"


def join(session: Session, tenant: Tenant) -> None:
    """Make the key that of a member of the project, whose login has ended."""
    belong(session, tenant)
    roles.assign(session, "role-project-member", "user_1", tenant.project.id, "operator")
    expire(session, tenant)


def leave(session: Session, tenant: Tenant) -> None:
    join(session, tenant)
    roles.unassign(session, "user_1", tenant.project.id, ["role-project-member"])


@pytest.mark.parametrize(
    ("rule", "outcome"),
    [
        (lambda *_: None, Queue.GENERATE),
        (narrow, "missing_scope"),
        (belong, "missing_scope"),
        (join, Queue.GENERATE),
        (leave, "missing_scope"),
        (expire, "key_expired"),
    ],
)
def test_job_of_a_key_goes_on_while_the_key_or_its_person_may_make_it(db: Database, rule: Rule, outcome: str) -> None:
    with db.write() as session:
        tenant, rival = Tenant(session, "acme"), Tenant(session, "rival")
        rule(session, tenant)

        assert resolve(session, tenant, MODEL, permission="api.batch.write") == outcome
        assert resolve(session, rival, MODEL, permission="api.batch.write") == Queue.GENERATE


@pytest.mark.parametrize(
    ("kind", "columns", "permission"),
    [
        ("generation", {}, "api.batch.write"),
        ("response", {}, "api.responses.write"),
        ("finetuning", {}, "api.fine_tuning.write"),
        ("generation", {"schedule_id": "sched_1"}, "api.schedules.write"),
        ("evaluation", {"retry_of": "evalrun_1"}, "api.evals.write"),
    ],
)
def test_job_needs_the_permission_that_made_it(kind: str, columns: dict[str, str], permission: str) -> None:
    job = Job(project_id="proj_1", key_id="k", kind=kind, **columns)

    assert access.work_of(job, MODEL, CHAT) == Work("proj_1", "k", MODEL, CHAT, permission)
    assert {row.permission for row in kinds.rows().values()} <= permissions.ALL


def test_work_of_no_key_is_judged_by_its_project(db: Database) -> None:
    with db.write() as session:
        tenant = Tenant(session, "acme")
        revoke(session, tenant)

        assert resolve(session, tenant, MODEL, key_id=None) == Queue.GENERATE
        archive(session, tenant)
        assert resolve(session, tenant, MODEL, key_id=None) == "project_archived"


def test_alias_that_a_server_has_as_a_name_is_another_model(db: Database) -> None:
    with db.write() as session:
        tenant = Tenant(session, "acme")
        workers.store_models(session, {ALIAS: True}, Queue.GENERATE)
        allow(MODEL)(session, tenant)

        assert resolve(session, tenant, ALIAS) == "model_not_found"
        deny(MODEL)(session, tenant)
        assert resolve(session, tenant, ALIAS) == "external_model_not_allowed"
        tenant.project.allow_external = True
        assert resolve(session, tenant, ALIAS) == Queue.GENERATE
        assert session.get_one(Model, ALIAS).external


def test_refusal_of_a_denied_model_names_the_permitted_ones_alone(db: Database) -> None:
    config = Settings()
    with db.write() as session:
        tenant = Tenant(session, "acme")
        deny(MODEL)(session, tenant)
        with pytest.raises(AccessDenied) as denial:
            access.check(session, Registry.load(config), Work(tenant.project.id, None, MODEL, CHAT))

    assert denial.value.others == "The models that serve /v1/chat/completions here: none."


#: The modules that have models asked, each with what it lets in.
DOORS = {
    "api/batches/dry_run.py": "batches that are validated without being created",
    "api/inference/targets.py": "interactive clients: chat, completions, responses, embeddings, rankings, searches",
    "api/monitoring/routes.py": "embedding models of drift monitors",
    "api/retrieval/routes.py": "embedding models of vector stores",
    "api/retrieval/search.py": "rankers of searches",
    "jobs/evals/run_requests.py": "sampling and judges of a run",
    "jobs/finetuning/tuning_requests.py": "bases of fine-tuning jobs",
    "workers/batches/planning.py": "batches, schedules, retries, background responses, steps of eval runs",
    "workers/batches/running.py": "claimed shards of all of these",
    "workers/finetuning/training_plan.py": "bases of planned fine-tuning jobs",
    "workers/inference/peer_client.py": "file searches and summaries of a request in progress",
    "workers/retrieval/ingestion/job.py": "files of vector stores",
    "workers/retrieval/reranking.py": "rankers of searches in progress",
}


def test_every_module_that_routes_work_is_a_known_door() -> None:
    sources = {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for folder in ("api", "workers", "jobs", "cli")
        for path in (ROOT / folder).rglob("*.py")
    }

    doors = {name for name, text in sources.items() if re.search(r"\baccess\.(resolve|check)\(", text)}
    probe = {"workers/dispatcher/rollbacks.py"}  # which asks an alias itself, in no key's name
    assert doors == set(DOORS) | probe
    assert {name for name, text in sources.items() if re.search(r"\brouting\.route\(", text)} == {
        "jobs/fleet/access.py"
    }
