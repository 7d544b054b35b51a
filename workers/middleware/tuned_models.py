"""Tuned models before all other middleware: the asked name becomes base model and adapter, and stands in the answer.

    model: ft:… ── SQL, a second old at most ──▶ base, adapter ──▶ cache, file search, context ──▶ engine
    answer ◀── the asked name, and what it was made by ◀────────────────────────────────────────────┘

What stands behind sees the base model's name, which has engine, context and tokenizer, and the adapter, which the
cache keys answers by. A model that is deleted, or that the project may not ask for any more, is refused within two
seconds, whether it would come from the cache or not.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import msgspec

from jobs.db.engine import Database
from jobs.errors import DatabaseBusy, NotFound, StorageFull, StorageUnavailable
from jobs.registry import models
from jobs.timings import Timings
from workers.engines.port import Adapter, AdapterRefused, Answer, Emit, Engine, EngineBusy, Request, refusal
from workers.middleware.base import Ask, Middleware
from workers.runtime.adapter_files import AdapterFiles, TamperedAdapter
from workers.runtime.recent_reads import RecentReads

log = logging.getLogger(__name__)
_AGAIN: Final = 2.0


class _Row(NamedTuple):
    """The row of a tuned model that a project may ask for."""

    id: str
    base: str
    method: str
    state: str
    location: str
    sha256: str
    probe: models.ProbeRecord


class TunedModels:
    """Ask for tuned models by the names that clients have for them. On the engines' loop.

    `serves` tells whether an engine has a model of exactly this name, such as a server with tuned models of its own.
    `version_of` is the version of the engine of a base model.
    """

    def __init__(
        self,
        db: Database,
        files: AdapterFiles,
        *,
        serves: Callable[[str], bool],
        version_of: Callable[[str], str],
        timings: Timings = Timings(),
    ) -> None:
        self._db, self._files = db, files
        self._serves, self._version_of = serves, version_of
        self._fetches: dict[str, asyncio.Task[Adapter]] = {}  # by SHA-256
        self._rows: RecentReads[tuple[str, str], _Row | None] = RecentReads(self._read, timings.tuned_model_look)

    def concerns(self, request: Request) -> bool:
        """Return whether a request may name a tuned model of this deployment."""
        name = request.body.get("model")
        return isinstance(name, str) and models.is_tuned(name) and not self._serves(name)

    async def ask(self, request: Request, emit: Emit | None, ask: Ask) -> Answer:
        """Return what `ask` answers to the request for base model and adapter, under the name that was asked for."""
        resolved = await self.resolve(request)
        if isinstance(resolved, Answer):
            return resolved
        if resolved.adapter is None:
            return await ask(resolved, emit)
        name, base = str(request.body["model"]), str(resolved.body["model"])
        naming = _Naming(name, base, f"{base}+{resolved.adapter.name}+{self._version_of(base)}")
        try:
            return naming.answer(await ask(resolved, naming.emit(emit) if emit else None))
        except AdapterRefused as error:
            log.error("adapter_refused", extra={"model": name, "reason": str(error)})  # noqa: TRY400
            if error.failed_probe:
                await self._fail_probe(request, str(error), resolved.adapter.trial)
                return _probe_refusal(name, str(error))
            return refusal(400, f"The model `{name}` cannot be served: {error}", code="adapter_refused", param="model")

    async def resolve(self, request: Request) -> Request | Answer:
        """Return the request with the base model and the adapter of the tuned model that it names.

        A request for a name that no tuned model has for its project comes back as it is. The answer is a refusal.
        Raises EngineBusy.
        """
        if not self.concerns(request):
            return request
        name = str(request.body["model"])
        row = await self._rows.get((request.tenant, name))
        if row is None:
            return request
        if (refused := await self._find_refusal(name, row)) is not None:
            return refused
        try:
            adapter = self._files.ready(row.sha256) or await self._fetch_adapter(row)
        except (TamperedAdapter, NotFound) as error:
            log.error("adapter_refused", extra={"model": name, "reason": str(error)})  # noqa: TRY400
            return refusal(500, f"The model `{name}` cannot be served: {error}", code="adapter_corrupt", param="model")
        except (StorageUnavailable, StorageFull) as error:
            raise EngineBusy(error.message, retry_after=_AGAIN) from error
        adapter = replace(adapter, trial=row.probe.trial, accepted=row.probe.accepted)
        return replace(request, body={**request.body, "model": row.base}, adapter=adapter)

    async def _fail_probe(self, request: Request, reason: str, trial: int) -> None:
        """Record that the model of the request failed its probe: no worker serves it any more."""
        row = await self._rows.get((request.tenant, str(request.body.get("model"))))
        if row is not None:
            await asyncio.to_thread(self._write_failure, row.id, reason, trial)

    async def _find_refusal(self, name: str, row: _Row) -> Answer | None:
        if row.state == models.DELETED:
            if self._files.ready(row.sha256) is not None:
                await asyncio.to_thread(self._remove_deleted_files)
            return refusal(404, f"The model `{name}` was deleted.", code="model_deleted", param="model")
        if row.state != models.READY:
            return _probe_refusal(name, row.probe.reason)
        if (row.method == models.FULL) != self._files.whole:
            kind = "weights of its own" if row.method == models.FULL else "an adapter"
            message = f"The model `{name}` has {kind}, which this worker does not serve."
            return refusal(400, message, code="model_not_supported", param="model")
        return None

    async def _fetch_adapter(self, row: _Row) -> Adapter:
        """Fetch an adapter once for all that wait for it: it may take minutes, and threads are few."""
        if (fetch := self._fetches.get(row.sha256)) is None:
            fetch = self._fetches[row.sha256] = asyncio.create_task(asyncio.to_thread(self._fetch, row))
            fetch.add_done_callback(lambda _: self._fetches.pop(row.sha256, None))
        return await asyncio.shield(fetch)

    def _fetch(self, row: _Row) -> Adapter:
        adapter = self._files.fetch(row.location, row.sha256)
        self._remove_deleted_files()  # of deleted models that were not requested since
        return adapter

    def _remove_deleted_files(self) -> None:
        """Remove the local files of models that are not served any more."""
        with suppress(DatabaseBusy):
            with self._db.read() as session:
                hashes = models.served_hashes(session)
            self._files.keep(hashes)

    def _read(self, key: tuple[str, str]) -> _Row | None:
        project_id, name = key
        with self._db.read() as session:
            row = models.find_any(session, name, project_id)
            if row is None:
                return None
            probe = models.probe_of(row)
            return _Row(row.id, row.base, row.method, row.state, row.location, row.sha256, probe)

    def _write_failure(self, model_id: str, reason: str, trial: int) -> None:
        try:
            with self._db.write() as session:
                models.fail_probe(session, model_id, reason, trial)
        except DatabaseBusy:  # the engine refuses the adapter until it is started again, and then probes it again
            log.warning("failed_probe_not_recorded", extra={"model": model_id})


def _probe_refusal(name: str, reason: str | None) -> Answer:
    """Return the refusal of a model whose engine answers otherwise than its trainer. Earlier rows have no reason."""
    why = reason or "The engine does not answer as it did in training."
    message = f"The model `{name}` is not served until an operator has decided (`nightmill models probe`): {why}"
    return refusal(400, message, code="failed_probe", param="model")


class TunedModelMiddleware(Middleware):
    """An engine that may be asked for tuned models."""

    def __init__(self, engine: Engine, tuned_models: TunedModels) -> None:
        super().__init__(engine)
        self._tuned_models = tuned_models

    def concerns(self, request: Request) -> bool:
        return self._tuned_models.concerns(request)

    async def handle(self, request: Request) -> Answer:
        return await self._tuned_models.ask(request, None, self._inner)

    async def handle_stream(self, request: Request, emit: Emit) -> Answer:
        return await self._tuned_models.ask(request, emit, self._inner)

    async def _inner(self, request: Request, emit: Emit | None) -> Answer:
        return await (self.engine.answer(request) if emit is None else self.engine.stream(request, emit))


@dataclass(frozen=True, slots=True)
class _Naming:
    """Put the requested name, and the fingerprint of what answered, where an answer names the base model."""

    requested_model: str
    base: str
    fingerprint: str

    def answer(self, answer: Answer) -> Answer:
        if answer.status != 200 or not answer.body:
            return answer
        body = msgspec.json.decode(answer.body)
        self._name(body)
        return replace(answer, body=msgspec.json.encode(body))

    def emit(self, emit: Emit) -> Emit:
        async def emit_named(chunk: bytes) -> None:
            event = msgspec.json.decode(chunk)
            self._name(event)
            if isinstance(event, dict):
                self._name(event.get("response"))
            await emit(msgspec.json.encode(event))

        return emit_named

    def _name(self, shown: Any) -> None:
        """Name what answered. An answer of another model, to which a long prompt was routed, keeps its name."""
        if isinstance(shown, dict) and shown.get("model") == self.base:
            shown |= {"model": self.requested_model, "system_fingerprint": self.fingerprint}
