"""Versions of prompts: their content in one form, so that equal contents have one hash, and their rows.

content ─▶ complete ─▶ version 1 ─▶ version 2 ─▶ …     numbered within the prompt, never changed
                                      ▲
                 default_version, labels: moved by an update, in a row that is locked
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.errors import Conflict, InvalidRequest, NotFound
from jobs.ids import new_id
from jobs.prompts import rendering
from jobs.prompts.resolution import PromptReference, ResolvedPrompt
from jobs.prompts.tables import Prompt, PromptVersion
from jobs.requests import fields, values
from jobs.requests.endpoints import RESPONSES
from jobs.security.tables import Project

PREFIX: Final = "pmpt_"
#: Bytes of a content: it is read with each request that names the prompt.
MAX_BYTES: Final = 256 << 10
MAX_VERSIONS: Final = 1000
MAX_PROMPTS: Final = 10_000
#: The largest number that an import may give a version.
MAX_NUMBER: Final = 1_000_000

#: The fields of a content with their defaults.
_EMPTY: Final[Mapping[str, Any]] = {
    "model": None, "instructions": None, "messages": [], "tools": [], "tool_choice": None, "text": None,
    "parameters": {}, "variables": [],
}  # fmt: skip
#: The fields of a response that `parameters` may have: those that say how the model answers.
PARAMETERS: Final = fields.VLLM[RESPONSES] | {
    "include", "max_output_tokens", "max_tool_calls", "parallel_tool_calls", "reasoning", "service_tier",
    "temperature", "top_logprobs", "top_p", "truncation",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class VersionContent:
    """A content that is complete, its SHA-256 and its size as JSON."""

    value: dict[str, Any]
    hash: str
    bytes: int


def complete(given: Mapping[str, Any]) -> VersionContent:
    """Check the fields of a content, and return it with all that were left out. Raises: InvalidRequest."""
    content = {name: default if given.get(name) is None else given[name] for name, default in _EMPTY.items()}
    parameters = {name: value for name, value in content["parameters"].items() if value is not None}
    for name in parameters:
        if name not in PARAMETERS:
            param = f"parameters.{fields.quote(name)}"
            raise InvalidRequest(f"Unknown parameter: '{param}'.", param=param, code=fields.CODE)
    if wrong := values.objection(RESPONSES, parameters):
        raise InvalidRequest(wrong.message, param=f"parameters.{wrong.param}", code=wrong.code)
    if content["instructions"] is None and not content["messages"]:
        message = "A prompt has 'instructions', 'messages' or both."
        raise InvalidRequest(message, param="instructions", code="missing_required_parameter")
    content |= {"parameters": parameters, "variables": rendering.complete_variables(content)}
    encoded = msgspec.json.encode(content, order="deterministic")
    if len(encoded) > MAX_BYTES:
        message = f"The content of a prompt has at most {MAX_BYTES} bytes; this one has {len(encoded)}."
        raise InvalidRequest(message, code="prompt_too_large")
    return VersionContent(content, hashlib.sha256(encoded).hexdigest(), len(encoded))


def create(
    session: Session,
    project_id: str,
    content: VersionContent,
    *,
    id_: str | None = None,
    number: int | None = None,
    created_by: str | None = None,
    **columns: Any,
) -> tuple[Prompt, PromptVersion, bool]:
    """Return a prompt with its first version, and whether both are new: an id that is taken may have the same content.

    The project is locked, so that creates at the same moment count each other.

    Raises: Conflict, InvalidRequest.
    """
    session.get(Project, project_id, with_for_update={"key_share": True})
    number = number or 1
    prompt = session.get(Prompt, (project_id, id_)) if id_ else None
    if prompt is not None:
        return prompt, _same_version(session, prompt, number, content), False
    own = select(func.count()).select_from(Prompt).where(Prompt.project_id == project_id)
    if (session.scalar(own) or 0) >= MAX_PROMPTS:
        raise InvalidRequest(f"A project has at most {MAX_PROMPTS} prompts.", code="too_many_prompts")
    prompt = Prompt(
        project_id=project_id,
        id=id_ or new_id(PREFIX),
        default_version=number,
        latest_version=number,
        labels={},
        imported_from=id_,
        created_at=now(),
        **columns,
    )
    session.add(prompt)
    return prompt, _add(session, prompt, number, content, created_by), True


def add_version(
    session: Session,
    prompt: Prompt,
    content: VersionContent,
    *,
    number: int | None = None,
    created_by: str | None = None,
) -> tuple[PromptVersion, bool]:
    """Return a version of a locked prompt, and whether it is new: a number that is taken may have the same content.

    Raises: Conflict, InvalidRequest.
    """
    if number is not None and find_version(session, prompt, number) is not None:
        return _same_version(session, prompt, number, content), False
    number = number or prompt.latest_version + 1
    own = PromptVersion.project_id == prompt.project_id, PromptVersion.prompt_id == prompt.id
    if (session.scalar(select(func.count()).select_from(PromptVersion).where(*own)) or 0) >= MAX_VERSIONS:
        raise InvalidRequest(f"A prompt has at most {MAX_VERSIONS} versions.", code="too_many_versions")
    prompt.latest_version = max(prompt.latest_version, number)
    return _add(session, prompt, number, content, created_by), True


def move_pointers(
    session: Session, prompt: Prompt, default: int | None, labels: Mapping[str, int | None] | None
) -> None:
    """Let a locked prompt's default version be another one, and replace all its labels. Null removes a label.

    Raises: InvalidRequest, for a version that the prompt lacks.
    """
    named = {"default_version": default, **{f"labels.{name}": number for name, number in (labels or {}).items()}}
    for param, number in named.items():
        is_there = exists().where(
            PromptVersion.project_id == prompt.project_id,
            PromptVersion.prompt_id == prompt.id,
            PromptVersion.version == number,
        )
        if number is not None and not session.scalar(select(is_there)):
            message = f"The prompt has no version '{number}'."
            raise InvalidRequest(message, param=param, code="prompt_version_not_found")
    prompt.default_version = default or prompt.default_version
    if labels is not None:
        prompt.labels = {name: number for name, number in labels.items() if number is not None}


def find_version(session: Session, prompt: Prompt, number: int) -> PromptVersion | None:
    return session.get(PromptVersion, (prompt.project_id, prompt.id, number))


def version_of(session: Session, prompt: Prompt, reference: str | None, param: str = "version") -> PromptVersion:
    """Return the version that a number or a label names, the default one for None. Raises: NotFound."""
    if reference is None:
        number: int | None = prompt.default_version
    elif reference.isascii() and reference.isdigit():
        number = int(reference[:16])
    else:
        number = prompt.labels.get(reference)
    version = find_version(session, prompt, number) if number is not None else None
    if version is None:
        message = f"Prompt '{prompt.id}' has no version or label '{(reference or '')[:64]}'."
        raise NotFound(message, param=param, code="prompt_version_not_found")
    return version


def resolve(session: Session, project_id: str, reference: PromptReference) -> ResolvedPrompt:
    """Return the version that a reference names now. Raises: NotFound."""
    prompt = session.get(Prompt, (project_id, reference.id))
    if prompt is None:
        message = f"Prompt with id '{reference.id}' not found."
        raise NotFound(message, param="prompt.id", code="prompt_not_found")
    version = version_of(session, prompt, reference.version, param="prompt.version")
    return ResolvedPrompt(prompt.id, version.version, version.hash, version.bytes, version.content)


def default_versions(session: Session, prompts: Sequence[Prompt]) -> dict[str, PromptVersion]:
    """Return the default version of each of these prompts of one project, by the prompt's id."""
    statement = select(PromptVersion).join(
        Prompt,
        (Prompt.project_id == PromptVersion.project_id)
        & (Prompt.id == PromptVersion.prompt_id)
        & (Prompt.default_version == PromptVersion.version),
    )
    ids = [prompt.id for prompt in prompts]
    project_ids = {prompt.project_id for prompt in prompts}
    rows = session.scalars(statement.where(Prompt.project_id.in_(project_ids), Prompt.id.in_(ids)))
    return {version.prompt_id: version for version in rows}


def _add(
    session: Session, prompt: Prompt, number: int, content: VersionContent, created_by: str | None
) -> PromptVersion:
    version = PromptVersion(
        project_id=prompt.project_id,
        prompt_id=prompt.id,
        version=number,
        content=content.value,
        hash=content.hash,
        bytes=content.bytes,
        created_by=created_by,
        created_at=now(),
    )
    session.add(version)
    return version


def _same_version(session: Session, prompt: Prompt, number: int, content: VersionContent) -> PromptVersion:
    """Return a version that has this content. Raises: Conflict."""
    version = find_version(session, prompt, number)
    if version is None or version.hash != content.hash:
        message = f"The prompt '{prompt.id}' is there already, and its version {number} is not this content."
        raise Conflict(message, param="id", code="prompt_exists")
    return version
