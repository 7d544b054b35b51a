"""Targets of promotions: what a promotion moves, one class for each type.

    current ─▶ value now, the incumbent     check ─▶ the candidate can take its place     move ─▶ the candidate has it
    redirect: a run of an eval that asks the target ─▶ the same run, which asks the incumbent or the candidate

A run of a gate asks the target by the name that it has in production. So both runs differ in nothing else.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal

from msgspec.structs import replace
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.batches.lines import quote
from jobs.errors import InvalidRequest
from jobs.evals.run_requests import EvalRunRequest
from jobs.evals.runs import Sampled, SampledPrompt
from jobs.fleet import access
from jobs.fleet.access import Work
from jobs.fleet.models_file import Registry
from jobs.ledger import audit
from jobs.prompts import versions
from jobs.prompts.rendering import check_names
from jobs.prompts.tables import Prompt, PromptVersion
from jobs.registry import aliases, model_versions
from jobs.registry.tables import Alias, ModelVersion
from jobs.retrieval import attachments, indexes, reindexing
from jobs.retrieval.tables import VectorStore

_TARGET: Final = 128  # characters of the target of an audit row


@dataclass(frozen=True, slots=True)
class Mover:
    """The project and the key for which a target is moved."""

    project_id: str
    key_id: str | None
    registry: Registry


@dataclass(frozen=True, slots=True)
class MoveRecord:
    """Say who asked for a move and why, and name its promotion with the reports of the gates."""

    actor: str
    reason: str | None
    promotion_id: str
    request_id: str | None
    reports: Sequence[Mapping[str, Any]]

    @property
    def gate(self) -> dict[str, Any]:
        """The promotion and its reports, as the history of what moves stores them."""
        return {"promotion": self.promotion_id, "reports": list(self.reports)}


class _Target(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    permission: ClassVar[str]
    """The permission to move the target without a promotion, which a promotion takes too."""

    @property
    @abstractmethod
    def candidate(self) -> str:
        """Return the value that the target is to have: a model, the number of a version, or the id of an index."""

    @abstractmethod
    def current(self, session: Session, project_id: str, *, lock: bool = False) -> str:
        """Return the value that the target has; with `lock` nothing else moves it in this transaction.

        Raises: InvalidRequest, where there is no such target.
        """

    def state(self, session: Session, project_id: str) -> str:
        """Return what a promotion may find again at its end, or it moves nothing: all of the target that it replaces.

        Raises: InvalidRequest, where there is no such target.
        """
        return self.current(session, project_id)

    @abstractmethod
    def check(self, session: Session, mover: Mover) -> None:
        """Check that the target may have its candidate. Raises: InvalidRequest."""

    @abstractmethod
    def redirect(self, session: Session, project_id: str, request: EvalRunRequest, value: str) -> EvalRunRequest:
        """Return the request for a run, which asks the target, with a value of the target in its place.

        Raises: InvalidRequest, where the run does not ask the target.
        """

    @abstractmethod
    def move(self, session: Session, mover: Mover, record: MoveRecord) -> None:
        """Let the locked target have its candidate. Raises: Conflict, InvalidRequest."""


class AliasPromotion(_Target):
    """The alias `id`, whose requests `model` is to answer, all of them. The incumbent is its first target."""

    type: Literal["alias"]
    id: Annotated[str, Field(min_length=1, max_length=255)]
    model: Annotated[str, Field(min_length=1, max_length=255)]

    permission = "api.aliases.write"

    @property
    def candidate(self) -> str:
        return self.model

    def current(self, session: Session, project_id: str, *, lock: bool = False) -> str:
        return aliases.routing_of(self._find(session, project_id, lock=lock)).incumbent

    def state(self, session: Session, project_id: str) -> str:
        targets = aliases.routing_of(self._find(session, project_id)).targets
        return ", ".join(f"{each.model} {each.weight} %" for each in targets) if targets[1:] else targets[0].model

    def check(self, session: Session, mover: Mover) -> None:
        work = Work(mover.project_id, mover.key_id, self.model, "")
        try:
            access.check_alias(session, mover.registry, work, {self.model: "target.model"})
        except access.AccessDenied as denial:
            raise InvalidRequest(str(denial), param="target.model", code=denial.code) from None

    def redirect(self, _session: Session, _project_id: str, request: EvalRunRequest, value: str) -> EvalRunRequest:
        if request.sampled is None or request.sampled.model != self.id:
            raise _asks_another("data_source.model", f"the alias '{quote(self.id)}'")
        return _ask_model(request, request.sampled, value)

    def move(self, session: Session, mover: Mover, record: MoveRecord) -> None:
        alias = self._find(session, mover.project_id)
        former = aliases.routing_of(alias)
        routing = replace(former, targets=aliases.single(self.model).targets)
        aliases.move(session, alias, routing, "update", actor=record.actor, reason=record.reason, gate=record.gate)
        details = {"name": alias.name, "model": alias.model, **routing.to_json()}
        details |= {"former_model": former.incumbent, "former": former.to_json()}
        _record(session, mover, record, "alias.update", alias.name, details)

    def _find(self, session: Session, project_id: str, *, lock: bool = False) -> Alias:
        alias = aliases.find(session, self.id, project_id, lock=lock)
        if alias is None:
            raise InvalidRequest(f"No alias '{quote(self.id)}'.", param="target.id", code="alias_not_found")
        return alias


def _write_number(value: Any) -> Any:
    """Return a number as the API shows that of a version, and any other value as it is."""
    return str(value) if isinstance(value, int) else value


class PromptPromotion(_Target):
    """The prompt `id`, whose default version is to be `version`."""

    type: Literal["prompt"]
    id: Annotated[str, Field(min_length=1, max_length=64)]
    version: Annotated[str, BeforeValidator(_write_number), Field(pattern=r"^[1-9][0-9]{0,6}$")]

    permission = "api.prompts.write"

    @property
    def candidate(self) -> str:
        return self.version

    def current(self, session: Session, project_id: str, *, lock: bool = False) -> str:
        return str(self._find(session, project_id, lock=lock).default_version)

    def check(self, session: Session, mover: Mover) -> None:
        self._version(session, mover.project_id, self.version)

    def redirect(self, session: Session, project_id: str, request: EvalRunRequest, value: str) -> EvalRunRequest:
        sampled = request.sampled
        if sampled is None or sampled.prompt is None or sampled.prompt.id != self.id:
            raise _asks_another("data_source.input_messages.prompt", f"the prompt '{quote(self.id)}'")
        row, variables = self._version(session, project_id, value), sampled.prompt.variables
        check_names(row.content["variables"], variables)
        source = request.data_source
        model = source.get("model") or row.content["model"]
        if model is None:
            message = f"Version {value} of the prompt names no model: name one in 'data_source.model'."
            raise InvalidRequest(message, param="data_source.model", code="missing_required_parameter")
        prompt = SampledPrompt(
            id=self.id, version=row.version, hash=row.hash, bytes=row.bytes, content=row.content, variables=variables
        )
        messages = source["input_messages"]
        shown = {**messages, "prompt": {**messages["prompt"], "version": value}}
        return request.model_copy(
            update={
                "sampled": sampled.model_copy(update={"prompt": prompt, "model": model}),
                "data_source": {**source, "input_messages": shown},
            }
        )

    def move(self, session: Session, mover: Mover, record: MoveRecord) -> None:
        prompt = self._find(session, mover.project_id)
        details = {"default_version": int(self.version), "former_version": prompt.default_version}
        versions.move_pointers(session, prompt, int(self.version), None)
        _record(session, mover, record, "prompt.update", prompt.id, details)

    def _find(self, session: Session, project_id: str, *, lock: bool = False) -> Prompt:
        prompt = session.get(Prompt, (project_id, self.id), with_for_update=lock or None)
        if prompt is None:
            raise InvalidRequest(f"No prompt '{quote(self.id)}'.", param="target.id", code="prompt_not_found")
        return prompt

    def _version(self, session: Session, project_id: str, number: str) -> PromptVersion:
        version = versions.find_version(session, self._find(session, project_id), int(number))
        if version is None:
            message = f"The prompt has no version '{number}'."
            raise InvalidRequest(message, param="target.version", code="prompt_version_not_found")
        return version


class IndexPromotion(_Target):
    """The vector store `id`, whose searches are to read the index `index_id`."""

    type: Literal["index"]
    id: Annotated[str, Field(min_length=1, max_length=64)]
    index_id: Annotated[str, Field(min_length=1, max_length=64)]

    permission = "api.vector_stores.write"

    @property
    def candidate(self) -> str:
        return self.index_id

    def current(self, session: Session, project_id: str, *, lock: bool = False) -> str:
        return self._find(session, project_id, lock=lock).current_id

    def check(self, session: Session, mover: Mover) -> None:
        store = self._find(session, mover.project_id)
        if indexes.count_missing(session, store, self._index(session, store, self.index_id)):
            message = f"The index '{quote(self.index_id)}' lacks files of the store: sync it first."
            raise InvalidRequest(message, param="target.index_id", code="index_incomplete")

    def redirect(self, session: Session, project_id: str, request: EvalRunRequest, value: str) -> EvalRunRequest:
        sampled = request.sampled
        if sampled is None or sampled.retrieval is None or sampled.retrieval.vector_store_id != self.id:
            raise _asks_another("data_source.vector_store_id", f"the vector store '{quote(self.id)}'")
        index = self._index(session, self._find(session, project_id), value)
        retrieval = sampled.retrieval.model_copy(update={"index_id": index.id})
        sampled = sampled.model_copy(update={"retrieval": retrieval, "model": index.model})
        return request.model_copy(update={"sampled": sampled})

    def move(self, session: Session, mover: Mover, record: MoveRecord) -> None:
        store = self._find(session, mover.project_id)
        details = {"store": store.id, "before": store.current_id}
        reindexing.switch(session, store, self._index(session, store, self.index_id))
        _record(session, mover, record, "vector_store.index.switch", self.index_id, details)

    def _find(self, session: Session, project_id: str, *, lock: bool = False) -> VectorStore:
        own = VectorStore.id == self.id, VectorStore.project_id == project_id, VectorStore.parent_id.is_(None)
        store = session.scalar(select(VectorStore).where(*own))
        if store is not None and lock:
            store = indexes.lock(session, store.id)
        if store is None or attachments.is_over(store):
            raise InvalidRequest(f"No vector store '{quote(self.id)}'.", param="target.id", code="store_not_found")
        return store

    def _index(self, session: Session, store: VectorStore, index_id: str) -> VectorStore:
        index = session.scalar(indexes.of(store).where(VectorStore.id == index_id))
        if index is None:
            message = f"The vector store has no index '{quote(index_id)}'."
            raise InvalidRequest(message, param="target.index_id", code="index_not_found")
        return index


class StagePromotion(_Target):
    """The tuned model `id`, which is to be the version of its family in production. The incumbent moves to `archived`.

    A run asks the model itself. The incumbent is an empty text where no version of the family is in production.
    """

    type: Literal["stage"]
    id: Annotated[str, Field(min_length=1, max_length=255)]
    stage: Literal["production"] = "production"

    permission = "api.model_versions.write"

    @field_validator("stage", mode="before")
    @classmethod
    def _take_default(cls, stage: Any) -> Any:
        """Take null for the default, as all requests do."""
        return "production" if stage is None else stage

    @property
    def candidate(self) -> str:
        return self.id

    def current(self, session: Session, project_id: str, *, lock: bool = False) -> str:
        former = model_versions.in_production(session, self._find(session, project_id, lock=lock))
        return "" if former is None else former.model

    def check(self, session: Session, mover: Mover) -> None:
        version = self._find(session, mover.project_id)
        if not model_versions.is_ready(session, version):
            message = f"The model '{quote(self.id)}' is not served: it was deleted, or it failed its probe."
            raise InvalidRequest(message, param="target.id", code="model_not_ready")

    def redirect(self, _session: Session, _project_id: str, request: EvalRunRequest, value: str) -> EvalRunRequest:
        if request.sampled is None or request.sampled.model != self.id:
            raise _asks_another("data_source.model", f"the model '{quote(self.id)}'")
        if not value:
            message = "No version of the family is in production: there is nothing to compare with."
            raise InvalidRequest(message, param="rule.type", code="no_incumbent")
        return _ask_model(request, request.sampled, value)

    def move(self, session: Session, mover: Mover, record: MoveRecord) -> None:
        version = self._find(session, mover.project_id)
        details = {"name": version.model, "former_stage": version.stage, "stage": self.stage}
        model_versions.stage(
            session,
            version,
            self.stage,
            actor=record.actor,
            reason=record.reason,
            gate=record.gate,
            archive_existing=True,
        )
        _record(session, mover, record, "model_version.update", version.model, details)

    def _find(self, session: Session, project_id: str, *, lock: bool = False) -> ModelVersion:
        version = model_versions.find(session, self.id, project_id, lock=lock)
        if version is None:
            message = f"No version of a model found with the name '{quote(self.id)}'."
            raise InvalidRequest(message, param="target.id", code="model_not_found")
        return version


#: What a promotion may move.
Target = Annotated[AliasPromotion | PromptPromotion | IndexPromotion | StagePromotion, Field(discriminator="type")]


def _ask_model(request: EvalRunRequest, sampled: Sampled, model: str) -> EvalRunRequest:
    """Return a request for a run with another model in the place of its own."""
    sampled = sampled.model_copy(update={"model": model})
    return request.model_copy(update={"sampled": sampled, "data_source": {**request.data_source, "model": model}})


def _asks_another(param: str, target: str) -> InvalidRequest:
    message = f"Invalid '{param}': a gate asks what the promotion moves, {target}."
    return InvalidRequest(message, param=param, code="target_not_asked")


def _record(
    session: Session, mover: Mover, record: MoveRecord, action: str, target: str, details: dict[str, Any]
) -> None:
    """Add the audit row that the move has without a promotion, with the promotion in its details."""
    audit.record(
        session,
        actor=record.actor,
        action=action,
        target=target[:_TARGET],
        project_id=mover.project_id,
        request_id=record.request_id,
        details={**details, "promotion": record.promotion_id},
    )
