"""Run a worker of the pools `gpu`, `embed` and `tuned`: build its engines, bring them up and keep them current.

    Celery's threads ────────┐
    interactive consumer ────┴──▶ middleware ──▶ router ──▶ engines        all on the loop of the engine host

The engines come up beside Celery's consumer; the dispatcher publishes nothing for this worker before they are up.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute, Session

from jobs.db.engine import Database
from jobs.fleet import devices, workers
from jobs.fleet.models_file import ModelsFileError, Registry
from jobs.inference import responses
from jobs.inference.interactive import redis_url
from jobs.ledger.slot_weights import SLOTS
from jobs.platform import memory
from jobs.platform.limiters import SharedExclusiveLock
from jobs.queues import Queue
from jobs.registry import base_versions
from jobs.retrieval import searches
from jobs.security.tables import Project
from jobs.settings import Settings
from workers import app as celery_app
from workers import lifecycle, tasks
from workers.batches.slot_scheduler import SlotScheduler
from workers.engines.build_engines import build as build_router
from workers.engines.build_engines import build_tuned_router, is_outdated, refresh
from workers.engines.loaded_models import describe_models
from workers.engines.router import Router
from workers.inference.consumer import ConsumerLimits, InteractiveConsumer
from workers.inference.model_router import ModelRouter
from workers.inference.peer_client import PeerClient
from workers.inference.token_counting import ContextLimits, TokenCounter
from workers.middleware.pipeline import PipelineDeps, build_pipeline
from workers.middleware.response_cache import ResponseCache
from workers.middleware.schema_checker import SchemaChecker
from workers.middleware.tuned_models import TunedModels
from workers.retrieval.reranking import Reranking
from workers.retrieval.search import Searching
from workers.runtime.adapter_files import AdapterFiles
from workers.runtime.context import Context, Pool, build
from workers.runtime.engine_host import EngineHost
from workers.runtime.exclusive_device import ExclusiveDevice
from workers.runtime.log_tail import LogTail
from workers.runtime.quarantine import QuarantineKeeper
from workers.runtime.recent_reads import RecentReads
from workers.runtime.throttle import BatchThrottle

log = logging.getLogger(__name__)
#: Served models; models of endpoints, and whether they are external; the models file.
Shown = tuple[frozenset[str], Mapping[str, bool], Registry]
SECONDS: Final = 2.0  # life of a value read from the database
_REFRESH_SECONDS: Final = 1.0  # jobs may wait for a model that came up


def run(config: Settings, name: str, queue: str) -> None:
    """Serve `queue` with the engines that the models file names for it. The process ends here."""
    log_tail = LogTail()
    pool = Pool(name, (queue,), slots=SLOTS, state="starting")
    context = build(config, pool)
    engine, whole = _build_router(context, queue), queue == Queue.TUNED
    others = SharedExclusiveLock(config.data_dir / "run" / queue, config.lease_seconds)
    engine_health = QuarantineKeeper(context, engine, queue, log_tail)
    peers, response_cache = PeerClient(context), ResponseCache(context.db, config.cache_max_bytes, context.timings)
    deps = PipelineDeps(
        measure=engine.length,
        identity=engine.identity,
        is_alias=engine.is_alias,
        model_router=ModelRouter(context, peers, engine, queue),
        search=peers.search,
        context_budgets=ContextLimits(config, lambda: engine.registry).of,
        response_cache=response_cache,
        tuned_models=TunedModels(
            context.db,
            AdapterFiles(context.storage, config.data_dir / "run" / ("tuned" if whole else "adapters"), whole=whole),
            serves=lambda name: engine.engines.find(name) is not None,
            version_of=engine.version_of,
            timings=context.timings,
        ),
        checker=SchemaChecker(context.timings),
        allows_media_urls=ProjectPermission(context.db, Project.allow_media_urls).allows,
    )
    throttle = BatchThrottle(lambda: engine.batch_limits(config.batch_requests_while_interactive))
    shared = others if engine.is_shared else None
    pipeline, restarted = build_pipeline(engine, deps, config), partial(_note_restart, context)
    host = EngineHost(pipeline, restarted, shared, engine.handle_death, throttle, context.timings)
    consumer = _consumer(context, host, deps, queue)
    context.heartbeat.listen = partial(_listen, consumer, name, pool.queues)
    slot_scheduler = SlotScheduler(pool.slots)
    reloading = Reloading(context, host, engine, queue, others, partial(os.kill, os.getpid(), signal.SIGTERM))
    device = None
    if config.finetune_exclusive_device and name in devices.ENGINE_POOLS and engine.engines.own:
        device = ExclusiveDevice(context, host, partial(_listen, consumer, name, pool.queues))
    bring_up = partial(_bring_up, context, host, engine, consumer, reloading.look, engine_health, device)
    threading.Thread(target=bring_up, name="engine-start", daemon=True).start()
    app = celery_app.build(config, (queue,), threads=True)
    run_shard = partial(lifecycle.run_with_slot, context, host, slot_scheduler)
    hand_over = partial(host.loop.call_soon_threadsafe, consumer.hand_over)
    tasks.furnish(app, tasks.Runtime(context, run_shard, slot_scheduler, hand_over=hand_over))
    celery_app.work(app, name, pool.queues, slot_scheduler.threads)
    context.heartbeat.leave()
    seconds = config.shutdown_seconds if host.loop.is_running() else 0.0  # else no engine has begun to come up
    with suppress(TimeoutError):
        host.call(consumer.close(seconds)).result(seconds + 2)
        host.call(peers.close()).result(2)
    host.close()
    response_cache.close()
    context.usage.close()
    logging.shutdown()
    log_tail.flush()
    os._exit(0)  # threads that engines leave behind would delay the exit


def _consumer(context: Context, host: EngineHost, deps: PipelineDeps, queue: str) -> InteractiveConsumer:
    reranking = Reranking(context, host, queue)
    own = {
        searches.URL: Searching(context, host, reranking).answer,
        searches.RERANK_URL: reranking.answer,
        responses.COUNT_URL: _counting(host, deps).answer,
    }
    heartbeat = context.heartbeat
    return InteractiveConsumer(
        host,
        redis_url(context.config),
        queue,
        ConsumerLimits.of(context.config),
        context.timings,
        handlers=own,
        paused=lambda: heartbeat.off,
        under_way=heartbeat.under_way,
        usage=context.usage,
    )


def _counting(host: EngineHost, deps: PipelineDeps) -> TokenCounter:
    return TokenCounter(host, deps.measure, deps.search, deps.context_budgets, deps.tuned_models.resolve)


def _build_router(context: Context, queue: str) -> Router:
    registry = _await_models(context)
    if queue == Queue.TUNED:
        return build_tuned_router(context.config, context.models, context.timings)
    external = ProjectPermission(context.db, Project.allow_external)
    return build_router(context.config, registry, queue, external.allows, context.timings)


def _await_models(context: Context) -> Registry:
    """Wait until the models file can be read: a restart of this process would not help."""
    untold = True
    while True:
        try:
            return context.models.now()
        except ModelsFileError as error:
            if untold:
                log.error("models_file.rejected", extra={"reason": str(error)})  # noqa: TRY400
            untold = False
        context.stop.wait(_REFRESH_SECONDS)


def _listen(consumer: InteractiveConsumer, name: str, queues: tuple[str, ...], active: bool) -> bool:
    """Start or stop both consumers of this process; return False if the broker is unavailable."""
    consumer.listen(active)
    return celery_app.consume(name, queues, active)


def _bring_up(
    context: Context,
    host: EngineHost,
    engine: Router,
    consumer: InteractiveConsumer,
    reload: Callable[[], None],
    engine_health: QuarantineKeeper,
    device: ExclusiveDevice | None = None,
) -> None:
    """Bring the engines up and keep them current.

    Any error ends the process, which would serve nothing without this thread. An engine that does not come up ends the
    process too, until that engine is quarantined: a new process has a clean device.
    """
    try:
        engine_health.begin()
        if device is not None:
            device.await_turn()
        host.start()
        memory.freeze()
        log.info("engine_up", extra={"queue": consumer.queue})
        host.call(consumer.serve()).add_done_callback(partial(_end_with_consumer, engine_health))
        _keep_announced(context, engine, consumer.queue, partial(_look, reload, engine_health, host, device))
    except Exception:  # ends the process: the thread must not end alone
        if context.stop.is_set():
            return
        log.exception("engine_did_not_start")
        _end(engine_health)


def _end(engine_health: QuarantineKeeper) -> None:
    logging.shutdown()
    engine_health.excuse()
    os._exit(os.EX_SOFTWARE)  # the supervisor restarts this process, with backoff


def _look(
    reload: Callable[[], None], engine_health: QuarantineKeeper, host: EngineHost, device: ExclusiveDevice | None
) -> None:
    reload()
    engine_health.look(host)
    if device is not None:
        device.look()


def _end_with_consumer(engine_health: QuarantineKeeper, serving: "Future[None]") -> None:
    """End the process when its consumer has ended: it would announce models, and answer no client."""
    if not serving.cancelled() and (error := serving.exception()):
        log.error("interactive_ended", exc_info=error)
        _end(engine_health)


def _keep_announced(context: Context, engine: Router, queue: str, reload: Callable[[], None]) -> None:
    shown: Shown | None = None
    while True:
        reload()
        shown = _announce(context, engine, queue, shown)
        if context.stop.wait(_REFRESH_SECONDS):
            return


def _announce(context: Context, engine: Router, queue: str, shown: Shown | None) -> Shown:
    """Announce the served models; models of endpoints are remembered while their endpoint is unavailable."""
    names, discovered, _ = now = (engine.reachable_models, engine.discovered_models, engine.registry)
    if now == shown and context.standing.state == "ready":
        return now
    context.standing.models = tuple(sorted(names))
    context.standing.state = "ready"
    loaded = list(describe_models(engine))

    def store(session: Session) -> None:
        workers.store_models(session, discovered, queue)
        base_versions.record(session, loaded)

    context.db.retrying(store, context.stop)
    context.heartbeat.announce()
    return now


def _note_restart(context: Context) -> None:
    context.standing.restarts += 1
    memory.freeze()  # the old engine is garbage now


class Reloading:
    """Apply a models file that has changed to the engines of this process.

        servers (engine http)         asked from now on, or no more; those that stay go on with what they are at
        what this process has loaded  if that is something else now, it ends: it is started again, and loads it
        names, and models of others   known at once
        a file that is wrong          changes nothing

    `end` ends the process cleanly. `server_lock` is shared with the other processes that ask the same servers.
    """

    def __init__(
        self,
        context: Context,
        host: EngineHost,
        engine: Router,
        queue: str,
        server_lock: SharedExclusiveLock,
        end: Callable[[], None],
    ) -> None:
        self._context, self._host, self._engine, self._queue = context, host, engine, queue
        self._server_lock, self._end = server_lock, end
        self._seen = engine.registry

    def look(self) -> None:
        """Apply the models file if it has changed. Not on the engines' loop."""
        registry = self._context.models.now()
        if registry is self._seen:
            return
        self._seen = registry
        try:
            ends = is_outdated(self._engine.registry, registry, self._queue)
        except ModelsFileError as error:
            log.error("models_file.rejected", extra={"file": str(registry.file), "reason": str(error)})  # noqa: TRY400
            return
        if ends:
            log.warning("models_changed", extra={"queue": self._queue, "file": str(registry.file)})
            self._end()
        else:
            self._host.call(self._refresh(registry)).result()

    async def _refresh(self, registry: Registry) -> None:
        await refresh(self._engine, self._context.config, registry, self._queue, self._context.timings)
        if self._engine.is_shared:
            self._host.share(self._server_lock)


class ProjectPermission:
    """Read whether a project is allowed something, at most once in `SECONDS` for each project. On the engines' loop.

    `column` of the project says so.
    """

    def __init__(
        self, db: Database, column: InstrumentedAttribute[bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._db, self._column = db, column
        self._reads = RecentReads(self._read, SECONDS, clock)

    async def allows(self, project_id: str) -> bool:
        """Return whether the project is allowed it; an unknown project is not.

        Raises:
            EngineBusy: The database gives no answer now.
        """
        return await self._reads.get(project_id)

    def _read(self, project_id: str) -> bool:
        with self._db.read() as session:
            return bool(session.scalar(select(self._column).where(Project.id == project_id)))
