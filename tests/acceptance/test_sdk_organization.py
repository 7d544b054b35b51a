"""`client.admin.organization`: each method of the official SDK, whose answers the SDK validates strictly.

    COLLECTIONS   objects that are created, retrieved, listed page by page, updated and deleted
    SETTINGS      what a project or the organization has one of
    USAGE         buckets of time, page by page
    OTHERS        methods with a test of their own
    NOT_SERVED    404 `not_served`; among them all lists that the SDK never pages

The last test fails for a method of the SDK that is in none of them.
"""

import inspect
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from openai.pagination import AsyncConversationCursorPage, AsyncCursorPage, AsyncNextCursorPage
from sqlalchemy import select

from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet.workers import store_models
from jobs.ledger.tables import Audit
from jobs.queues import Queue
from jobs.usage.prices import set_prices
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import MODEL, chat_line, jsonl, running
from tests.support.organization import add_user, admin_key
from tests.support.web import make_key, running_app, serve

NAMES = ("first", "second", "third")
READ = ["api.files.read"]
LIMIT = {"threshold_amount": 500, "currency": "USD", "interval": "month"}
ALERT = {**LIMIT, "notification_channel": {"type": "email", "recipients": ["ada@example.com"]}}
CHANNEL: dict[str, Any] = {"type": "email", "recipients": ["boss@example.net"], "subject_prefix": "confidential"}
DAY = 86_400


@dataclass(frozen=True)
class World:
    """An organization with a project, users, groups, roles and keys; `ids` has three of each by parameter."""

    organization: Any
    ids: dict[str, list[str]]

    def where(self, parents: str) -> dict[str, str]:
        """Return the arguments that name the objects above a resource."""
        return {name: self.ids[name][0] for name in parents.split()}


@dataclass(frozen=True)
class Collection:
    """Objects of a kind. `bodies` creates them, or names those of the world; `changes` is the body of an update."""

    name: str
    verbs: str
    id_name: str
    bodies: Callable[[World], list[dict[str, Any]]]
    parents: str = ""
    changes: dict[str, Any] | None = None


@dataclass(frozen=True)
class Setting:
    """What there is one of. Where it can be deleted, there is none before it is set."""

    name: str
    verbs: str
    changes: dict[str, Any]
    parents: str = ""


def name_bodies(_: World) -> list[dict[str, Any]]:
    return [{"name": name} for name in NAMES]


def role_bodies(_: World) -> list[dict[str, Any]]:
    return [{"role_name": f"another {name}", "permissions": READ} for name in NAMES]


def alert_bodies(_: World) -> list[dict[str, Any]]:
    return [{**ALERT, "threshold_amount": cents} for cents in (0, 100, 200)]


def invite_bodies(_: World) -> list[dict[str, Any]]:
    return [{"email": f"{name}@example.org", "role": "reader", "projects": []} for name in NAMES]


def bodies_with(name: str, noun: str = "", **more: Any) -> Callable[[World], list[dict[str, Any]]]:
    """Return bodies that name objects of the world."""
    return lambda world: [{name: one, **more} for one in world.ids[noun or name]]


HELD = "create retrieve list delete"
EDITED = "create retrieve update list delete"
COLLECTIONS = (
    Collection("admin_api_keys", HELD, "key_id", name_bodies),
    Collection("invites", HELD, "invite_id", invite_bodies),
    Collection("users", "retrieve update list delete", "user_id", bodies_with("user_id"), "", {"role": "reader"}),
    Collection("users.roles", HELD, "role_id", bodies_with("role_id"), "user_id"),
    Collection("groups", EDITED, "group_id", name_bodies, "", {"name": "renamed"}),
    Collection("groups.users", HELD, "user_id", bodies_with("user_id"), "group_id"),
    Collection("groups.roles", HELD, "role_id", bodies_with("role_id"), "group_id"),
    Collection("roles", EDITED, "role_id", role_bodies, "", {"description": "Reads files"}),
    Collection(
        "projects.api_keys", "retrieve update list delete", "api_key_id", bodies_with("api_key_id"), "project_id",
        {"scopes": READ},
    ),
    Collection("projects.service_accounts", EDITED, "service_account_id", name_bodies, "project_id", {"role": "owner"}),
    Collection(
        "projects.users", EDITED, "user_id", bodies_with("user_id", role="member"),
        "project_id", {"role": "owner"},
    ),
    Collection(
        "projects.users.roles", HELD, "role_id", bodies_with("role_id", "project_role_id"),
        "project_id user_id",
    ),
    Collection("projects.groups", HELD, "group_id", bodies_with("group_id", role="role-project-member"), "project_id"),
    Collection(
        "projects.groups.roles", HELD, "role_id", bodies_with("role_id", "project_role_id"),
        "project_id group_id",
    ),
    Collection("projects.roles", EDITED, "role_id", role_bodies, "project_id", {"permissions": ["api.model.read"]}),
    Collection("spend_alerts", EDITED, "alert_id", alert_bodies, "", {**ALERT, "threshold_amount": 900}),
    Collection(
        "projects.spend_alerts", EDITED, "alert_id", alert_bodies,
        "project_id", {**ALERT, "threshold_amount": 900},
    ),
)  # fmt: skip

SET = "retrieve update"
SETTINGS = (
    Setting("data_retention", SET, {"retention_type": "zero_data_retention"}),
    Setting("projects.data_retention", SET, {"retention_type": "zero_data_retention"}, "project_id"),
    Setting("spend_limit", f"{SET} delete", LIMIT),
    Setting("projects.spend_limit", f"{SET} delete", LIMIT, "project_id"),
    Setting(
        "projects.model_permissions", f"{SET} delete", {"mode": "deny_list", "model_ids": ["all-minilm-l6-v2"]},
        "project_id",
    ),
    Setting("projects.hosted_tool_permissions", SET, {"file_search": {"enabled": False}}, "project_id"),
    Setting("projects.service_tier_settings", SET, {"enabled_tiers": ["flex"]}, "project_id"),
)  # fmt: skip

USAGE = (
    "completions", "embeddings", "moderations", "decisions", "images", "audio_speeches", "audio_transcriptions",
    "vector_stores", "code_interpreter_sessions", "file_search_calls", "web_search_calls", "costs",
)  # fmt: skip
OTHERS = {
    "audit_logs.list",
    "projects.create", "projects.retrieve", "projects.update", "projects.list", "projects.archive",
    "projects.rate_limits.list_rate_limits", "projects.rate_limits.update_rate_limit",
    "projects.service_accounts.api_keys.create",
}  # fmt: skip
NOT_SERVED = (
    "certificates.", "projects.certificates.", "external_keys.", "external_storage.", "workload_identity_providers.",
)  # fmt: skip


@pytest.fixture
def world(web: FastAPI, url: str) -> Iterator[World]:
    with openai.OpenAI(
        admin_api_key=admin_key(web), base_url=f"{url}/v1", max_retries=0, _strict_response_validation=True
    ) as client:
        ours = client.admin.organization
        project = ours.projects.create(name="Search").id
        accounts = [ours.projects.service_accounts.create(project, name=name) for name in NAMES]
        ids = {
            "project_id": [project],
            "user_id": [add_user(web, f"{name}@example.com", "owner") for name in NAMES],
            "group_id": [ours.groups.create(name=name).id for name in NAMES],
            "role_id": [ours.roles.create(role_name=name, permissions=READ).id for name in NAMES],
            "project_role_id": [
                ours.projects.roles.create(project, role_name=name, permissions=READ).id for name in NAMES
            ],
            "api_key_id": [account.api_key.id for account in accounts if account.api_key],
            "service_account_id": [account.id for account in accounts],
        }
        yield World(ours, ids)


def agree(one: Any, other: Any) -> bool:
    """Return whether two objects have the same values in all fields that both have."""
    left, right = one.to_dict(), other.to_dict()
    return all(left[name] == right[name] for name in left.keys() & right.keys())


def walk(page: Any) -> list[Any]:
    """Return the objects of all pages; each page has one."""
    pages = [following.data for following in page.iter_pages()]
    assert {len(data) for data in pages} == {1}
    return [data[0] for data in pages]


def create(world: World, row: Collection) -> list[str]:
    """Create objects, or find those of the world; return their ids."""
    resource, where, ids = attrgetter(row.name)(world.organization), world.where(row.parents), []
    for body in row.bodies(world):
        made = resource.create(**where, **body) if "create" in row.verbs else None
        ids.append(body.get(row.id_name) or made.id)
    return ids


@pytest.mark.parametrize("row", COLLECTIONS, ids=lambda row: row.name)
def test_object_is_created_retrieved_listed_updated_and_deleted(world: World, row: Collection) -> None:
    resource, where = attrgetter(row.name)(world.organization), world.where(row.parents)

    def rows_by_id() -> dict[str, Any]:
        rows = walk(resource.list(**where, limit=1))
        return {getattr(one, "id", None) or getattr(one, row.id_name): one for one in rows}

    ids = create(world, row)
    every = rows_by_id()
    target = {**where, row.id_name: ids[0]}
    found = resource.retrieve(**target)

    assert every.keys() >= set(ids)
    assert len(ids) == 3
    assert agree(found, every[ids[0]])
    if "update" in row.verbs:
        updated = resource.update(**target, **row.changes)
        assert not agree(updated, found)
        assert agree(updated, resource.retrieve(**target))
    deleted = resource.delete(**target)
    assert deleted.deleted is True
    assert deleted.object.endswith(".deleted")
    assert deleted.to_dict().get("id", ids[0]) == ids[0]
    assert rows_by_id().keys() == every.keys() - {ids[0]}
    with pytest.raises(openai.NotFoundError):
        resource.retrieve(**target)


@pytest.mark.parametrize("row", [row for row in COLLECTIONS if "project_id" in row.parents], ids=lambda row: row.name)
def test_object_of_a_project_is_not_found_in_another(world: World, row: Collection) -> None:
    resource, [first, *_] = attrgetter(row.name)(world.organization), create(world, row)
    where = {**world.where(row.parents), "project_id": world.organization.projects.create(name="Other").id}

    assert not {getattr(one, "id", None) or getattr(one, row.id_name) for one in resource.list(**where)} & {first}
    with pytest.raises(openai.BadRequestError):
        resource.list(**where, after=first)
    for verb in ("retrieve", "delete"):
        with pytest.raises(openai.NotFoundError):
            getattr(resource, verb)(**where, **{row.id_name: first})
    assert resource.retrieve(**{**world.where(row.parents), row.id_name: first})


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row.name)
def test_setting_is_retrieved_updated_and_deleted(world: World, row: Setting) -> None:
    resource, where = attrgetter(row.name)(world.organization), world.where(row.parents)

    def current() -> Any:
        """Return what is set, unvalidated: the SDK has no word for an organization that retains what it is sent."""
        try:
            return resource.with_raw_response.retrieve(**where).http_response.json()
        except openai.NotFoundError:
            return None

    before = current()
    updated = resource.update(**where, **row.changes)

    assert current() == updated.to_dict() != before
    assert resource.retrieve(**where) == updated
    assert (before is None) == ("delete" in row.verbs)
    if "delete" in row.verbs:
        deleted = resource.delete(**where)
        assert deleted.deleted is True
        assert deleted.object == f"{updated.object}.deleted"
        assert current() is None


def test_project_is_created_retrieved_listed_updated_and_archived(world: World) -> None:
    projects = world.organization.projects
    made = [projects.create(name=name) for name in NAMES]
    renamed = projects.update(made[0].id, name="renamed")
    archived = projects.archive(made[0].id)
    live, every = (
        {project.id for project in walk(projects.list(limit=1, include_archived=archived_too))}
        for archived_too in (False, True)
    )

    assert (renamed.id, renamed.name, renamed.status) == (made[0].id, "renamed", "active")
    assert (archived.status, archived.archived_at is not None) == ("archived", True)
    assert projects.retrieve(made[0].id) == archived
    assert every - live == {made[0].id}
    assert every >= {project.id for project in made}


def test_key_of_a_service_account_opens_the_routes_of_its_scopes(world: World, url: str) -> None:
    account, project = world.ids["service_account_id"][0], world.ids["project_id"][0]
    key = world.organization.projects.service_accounts.api_keys.create(
        account, project_id=project, name="narrow", scopes=READ
    )

    with openai.OpenAI(api_key=key.value, base_url=f"{url}/v1", max_retries=0) as client:
        assert client.files.list().data == []
        with pytest.raises(openai.PermissionDeniedError):
            client.models.list()
    listed = world.organization.projects.api_keys.list(project)
    assert [shown.owner.service_account.id for shown in listed if shown.id == key.id] == [account]


def test_rate_limits_are_listed_page_by_page_and_updated(world: World) -> None:
    limits, project = world.organization.projects.rate_limits, world.ids["project_id"][0]
    first, *others = walk(limits.list_rate_limits(project, limit=1))
    updated = limits.update_rate_limit(first.id, project_id=project, max_requests_per_1_minute=7)

    assert others
    assert updated.to_dict() == {**first.to_dict(), "max_requests_per_1_minute": 7}
    assert walk(limits.list_rate_limits(project, limit=1)) == [updated, *others]


def test_audit_log_is_listed_page_by_page(world: World) -> None:
    entries = walk(world.organization.audit_logs.list(event_types=["group.created", "project.created"], limit=1))

    assert [entry.type for entry in entries] == ["group.created"] * 3 + ["project.created"]
    assert [entry.group_created.id for entry in entries[:3]] == world.ids["group_id"][::-1]
    assert entries[3].project_created.id == entries[3].project.id == world.ids["project_id"][0]
    assert {entry.actor.type for entry in entries} == {"api_key"}


def test_audit_log_holds_no_secret(world: World, web: FastAPI) -> None:
    ours, project = world.organization, world.ids["project_id"][0]
    account = ours.projects.service_accounts.create(project, name="bot")
    keys = [
        ours.admin_api_keys.create(name="ci").value,
        account.api_key.value,
        ours.projects.service_accounts.api_keys.create(account.id, project_id=project).value,
    ]
    for resource, where in ((ours.spend_alerts, {}), (ours.projects.spend_alerts, {"project_id": project})):
        alert = resource.create(**where, **{**ALERT, "notification_channel": CHANNEL})
        resource.update(alert_id=alert.id, **where, **{**ALERT, "notification_channel": CHANNEL, "threshold_amount": 9})
    with web.state.services.db.read() as session:
        rows = session.scalars(select(Audit)).all()
        written = [f"{row.target} {row.source} {row.destination} {row.details}" for row in rows]

    assert {row.action for row in rows} >= {"admin_key.create", "key.create", "spend_alert.update"}
    for secret in (*(key[12:55] for key in keys), *CHANNEL["recipients"], CHANNEL["subject_prefix"]):
        assert not [text for text in written if secret in text]


def test_many_projects_are_read_at_once(world: World) -> None:
    project = world.ids["project_id"][0]

    with ThreadPoolExecutor(87) as pool:
        read = list(pool.map(lambda _: world.organization.projects.retrieve(project).id, range(87)))

    assert read == [project] * 87


@pytest.mark.parametrize("name", USAGE)
def test_usage_has_buckets_page_by_page(world: World, name: str) -> None:
    method, today = getattr(world.organization.usage, name), int(now()) // DAY * DAY
    query = {"start_time": today - 4 * DAY, "end_time": today, "bucket_width": "1d", "limit": 3}

    pages = [method(**query)]
    while pages[-1].has_more:
        pages.append(method(**query, page=pages[-1].next_page))

    assert [[bucket.start_time for bucket in page.data] for page in pages] == [
        [today - 4 * DAY, today - 3 * DAY, today - 2 * DAY], [today - DAY],
    ]  # fmt: skip
    assert pages[-1].next_page is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("admin_api_keys", AsyncCursorPage),
        ("projects", AsyncConversationCursorPage),
        ("groups", AsyncNextCursorPage),
    ],
)
async def test_async_client_follows_each_style_of_pages(
    world: World, web: FastAPI, url: str, name: str, kind: type
) -> None:
    resource = getattr(world.organization, name)
    made = {resource.create(name=f"another {word}").id for word in NAMES}

    async with openai.AsyncOpenAI(
        admin_api_key=admin_key(web), base_url=f"{url}/v1", _strict_response_validation=True
    ) as client:
        first = await getattr(client.admin.organization, name).list(limit=1)
        ids = [one.id async for one in first]

    assert isinstance(first, kind)
    assert set(ids) >= made
    assert ids == [one.id for one in resource.list(limit=100)]


def test_usage_and_costs_are_those_of_the_batch(db: Database, tmp_path: Path) -> None:
    with (
        running(db, tmp_path, FakeEngine((MODEL,))) as inline,
        running_app(tmp_path, db.url) as web,
        serve(web) as url,
        openai.OpenAI(
            api_key=make_key(web, "Search"),
            admin_api_key=admin_key(web),
            base_url=f"{url}/v1",
            _strict_response_validation=True,
        ) as client,
    ):
        with db.write() as session:
            store_models(session, {MODEL: False}, Queue.GENERATE)
            set_prices(session, MODEL, {"input": 2.0, "output": 3.0}, 0, actor="operator")
        start = int(now()) // DAY * DAY
        content = jsonl([chat_line(f"c{n}", f"question {n}") for n in range(5)])
        file = client.files.create(file=("input.jsonl", content), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        inline.drain(batch.id)
        batch = client.batches.retrieve(batch.id)
        usage = client.admin.organization.usage
        used: Any = usage.completions(start_time=start, group_by=["model", "batch", "api_key_id"])
        costs: Any = usage.costs(start_time=start, group_by=["line_item"])
        keys = [key.id for key in client.admin.organization.projects.api_keys.list(_project_of(client))]

    [result] = [result for bucket in used.data for result in bucket.results]
    [cost] = [result for bucket in costs.data for result in bucket.results]
    assert batch.usage is not None
    assert batch.usage.output_tokens > 0
    assert (result.input_tokens, result.output_tokens, result.num_model_requests) == (
        batch.usage.input_tokens, batch.usage.output_tokens, 5,
    )  # fmt: skip
    assert (result.model, result.batch, [result.api_key_id]) == (MODEL, True, keys)
    assert cost.amount.value == pytest.approx((batch.usage.input_tokens * 2 + batch.usage.output_tokens * 3) / 1e6)


def _project_of(client: openai.OpenAI) -> str:
    return next(project.id for project in client.admin.organization.projects.list() if project.name == "Search")


def methods_of(resource: Any, prefix: str = "") -> Iterator[str]:
    """Return the names of all methods of a resource and those below it."""
    for name, member in vars(type(resource)).items():
        if isinstance(member, cached_property) and not name.startswith("with_"):
            yield from methods_of(getattr(resource, name), f"{prefix}{name}.")
        elif inspect.isfunction(member) and not name.startswith("_"):
            yield prefix + name


def test_methods_that_are_not_served_answer_404(world: World) -> None:
    required = dict.fromkeys(("external_id", "kms_arn", "role_arn"), "x")  # of the method with overloads
    codes = {}
    for name in methods_of(world.organization):
        if name.startswith(NOT_SERVED):
            method = attrgetter(name)(world.organization)
            parameters = inspect.signature(method).parameters.values()
            needed = {one.name: "x" for one in parameters if one.default is one.empty}
            with pytest.raises(openai.NotFoundError) as refusal:
                method(**needed, **(required if name == "external_keys.create" else {}))
            codes[name] = refusal.value.code

    assert set(codes.values()) == {"not_served"}
    assert len(codes) == 30


def test_every_method_of_the_sdk_has_a_row() -> None:
    rows: tuple[Collection | Setting, ...] = (*COLLECTIONS, *SETTINGS)
    served = {f"{row.name}.{verb}" for row in rows for verb in row.verbs.split()} | OTHERS
    with openai.OpenAI(admin_api_key="x") as client:
        every = set(methods_of(client.admin.organization))

    assert {name for name in every if not name.startswith(NOT_SERVED)} == served | {f"usage.{name}" for name in USAGE}
    assert len(every) == 143
