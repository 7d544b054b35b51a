"""Prompts: created, listed, changed and archived, and their versions. None is deleted: callers name them for years."""

from typing import Annotated

from fastapi import Query
from fastapi.responses import Response
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.http.bodies import resource
from api.http.idempotency import Idempotent
from api.http.paging import After, Limit20, Order, Page, find, page
from api.http.space import check_project, reserve
from api.prompts.schemas import (
    CreatePrompt,
    CreateVersion,
    PromptObject,
    PromptVersionObject,
    UpdatePrompt,
    show_prompt,
    show_version,
)
from jobs.clock import now
from jobs.errors import InvalidRequest, NotFound
from jobs.prompts import versions
from jobs.prompts.tables import Prompt, PromptVersion

router = resource("Prompts", area="prompts")


@router.post("/prompts", response_model=PromptObject)
def create_prompt(call: Call, once: Idempotent, body: CreatePrompt) -> Response:
    """Create a prompt with its first version. An `id` that is taken with the same content is the prompt there."""
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed
    content = versions.complete(body.content())
    check_project(call, content.bytes)

    def make(session: Session) -> PromptObject:
        prompt, version, is_new = versions.create(
            session,
            call.project_id,
            content,
            id_=body.id,
            number=body.version,
            created_by=call.actor,
            name=body.name,
            metadata_=body.metadata or {},
        )
        if not is_new:
            return _show(session, prompt)
        reserve(session, call, content.bytes)
        call.record(session, "prompt.create", prompt.id, {"version": version.version})
        return show_prompt(prompt, version)

    return once.run(fields, make)


@router.get("/prompts")
def list_prompts(
    call: Call,
    after: After = None,
    limit: Limit20 = 20,
    order: Order = "desc",
    name: Annotated[str | None, Query(max_length=255, description="The whole name.")] = None,
    archived: Annotated[bool, Query(description="The archived ones instead of the others.")] = False,
) -> Page[PromptObject]:
    """List the project's prompts, each with its default version."""
    own = _prompts_of(call)
    chosen = own.where(Prompt.archived_at.is_not(None) if archived else Prompt.archived_at.is_(None))
    if name is not None:
        chosen = chosen.where(Prompt.name == name)
    with call.db.read() as session:
        rows, more = find(session, chosen, Prompt, after=after, limit=limit, order=order, among=own)
        defaults = versions.default_versions(session, rows)
    return page(rows, more, lambda prompt: show_prompt(prompt, defaults[prompt.id]))


@router.get("/prompts/{prompt_id}")
def retrieve_prompt(call: Call, prompt_id: str) -> PromptObject:
    """Return a prompt with its default version."""
    with call.db.read() as session:
        return _show(session, _get(session, call, prompt_id))


@router.post("/prompts/{prompt_id}")
def update_prompt(call: Call, prompt_id: str, body: UpdatePrompt) -> PromptObject:
    """Change the name, the metadata, the default version or the labels of a prompt. Null removes a name or metadata."""
    with call.db.write() as session:
        prompt = _get(session, call, prompt_id, lock=True)
        versions.move_pointers(session, prompt, body.default_version, body.labels)
        if "name" in body.model_fields_set:
            prompt.name = body.name
        if "metadata" in body.model_fields_set:
            prompt.metadata_ = body.metadata or {}
        details = {"default_version": prompt.default_version, "labels": prompt.labels}
        call.record(session, "prompt.update", prompt.id, details)
        return _show(session, prompt)


@router.post("/prompts/{prompt_id}/archive")
def archive_prompt(call: Call, prompt_id: str) -> PromptObject:
    """Hide a prompt from lists. Requests that name it are answered as before. Archiving twice is not an error."""
    return _archive(call, prompt_id, archive=True)


@router.post("/prompts/{prompt_id}/unarchive")
def unarchive_prompt(call: Call, prompt_id: str) -> PromptObject:
    """Show an archived prompt in lists again."""
    return _archive(call, prompt_id, archive=False)


@router.post("/prompts/{prompt_id}/versions", response_model=PromptVersionObject)
def create_prompt_version(call: Call, once: Idempotent, prompt_id: str, body: CreateVersion) -> Response:
    """Add a version. The default version stays until it is changed."""
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed
    content = versions.complete(body.content())
    check_project(call, content.bytes)

    def make(session: Session) -> PromptVersionObject:
        prompt = _get(session, call, prompt_id, lock=True)
        version, is_new = versions.add_version(session, prompt, content, number=body.version, created_by=call.actor)
        if is_new:
            reserve(session, call, content.bytes)
            call.record(session, "prompt.version.create", prompt.id, {"version": version.version})
        return show_version(version)

    return once.run(fields, make)


@router.get("/prompts/{prompt_id}/versions")
def list_prompt_versions(
    call: Call, prompt_id: str, after: After = None, limit: Limit20 = 20, order: Order = "desc"
) -> Page[PromptVersionObject]:
    """List the versions of a prompt by their numbers. `after` is the number of the last one of the previous page."""
    number, falling = PromptVersion.version, order == "desc"
    with call.db.read() as session:
        prompt = _get(session, call, prompt_id)
        statement = select(PromptVersion).where(
            PromptVersion.project_id == call.project_id, PromptVersion.prompt_id == prompt.id
        )
        if after is not None:
            if not (after.isascii() and after.isdigit()) or not versions.find_version(session, prompt, int(after[:16])):
                raise InvalidRequest(f"No version '{clip(after)}'.", param="after", code="invalid_cursor")
            statement = statement.where(number < int(after) if falling else number > int(after))
        rows = session.scalars(statement.order_by(number.desc() if falling else number).limit(limit + 1)).all()
    shown = [show_version(version) for version in rows[:limit]]
    first, last_id = (shown[0].version, shown[-1].version) if shown else (None, None)
    return Page(data=shown, first_id=first, last_id=last_id, has_more=len(rows) > limit)


@router.get("/prompts/{prompt_id}/versions/{version}")
def retrieve_prompt_version(call: Call, prompt_id: str, version: str) -> PromptVersionObject:
    """Return a version of a prompt, by its number or a label."""
    with call.db.read() as session:
        return show_version(versions.version_of(session, _get(session, call, prompt_id), version))


def _prompts_of(call: CallContext) -> Select[Prompt]:
    return select(Prompt).where(Prompt.project_id == call.project_id)


def _get(session: Session, call: CallContext, prompt_id: str, *, lock: bool = False) -> Prompt:
    statement = _prompts_of(call).where(Prompt.id == prompt_id)
    prompt = session.scalar(statement.with_for_update() if lock else statement)
    if prompt is None:
        raise NotFound(f"No prompt found with id '{clip(prompt_id)}'.", param="prompt_id", code="prompt_not_found")
    return prompt


def _show(session: Session, prompt: Prompt) -> PromptObject:
    session.flush()
    return show_prompt(prompt, versions.version_of(session, prompt, None))


def _archive(call: CallContext, prompt_id: str, *, archive: bool) -> PromptObject:
    with call.db.write() as session:
        prompt = _get(session, call, prompt_id, lock=True)
        if archive != (prompt.archived_at is not None):
            prompt.archived_at = now() if archive else None
            call.record(session, "prompt.archive" if archive else "prompt.unarchive", prompt.id)
        return _show(session, prompt)
