"""A worker process: `python -m workers cpu|gpu|embed|io`.

    cpu     prefork, spawned children, each a worker of its own
    gpu     threads over one generation engine          embed   threads over one embedding engine
    io      threads over one delivery loop

`gpu QUEUE` and `embed QUEUE` serve another queue that models.yaml names.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial

from celery import Celery, current_app
from celery.utils import nodenames
from kombu.exceptions import OperationalError

from jobs import logs
from jobs.fleet import workers
from jobs.fleet.models_file import ModelsFileError, Registry
from jobs.inference import responses
from jobs.inference.interactive import redis_url
from jobs.platform import memory
from jobs.platform.limiters import SharedExclusiveLock
from jobs.queues import Queue
from jobs.retrieval import searches
from jobs.settings import Settings, settings
from workers import app as celery_app
from workers import tasks
from workers.batches.admission import Admission
from workers.engines.build_engines import build as build_router
from workers.engines.router import Router
from workers.inference.client import Asking, ModelRouter
from workers.inference.consumer import InteractiveConsumer, Limits
from workers.inference.token_counting import ContextLimits, Counting
from workers.middleware.pipeline import Needs, before
from workers.middleware.response_cache import Shelf
from workers.middleware.schema_checker import Checker
from workers.retrieval.reranking import Reranking
from workers.retrieval.search import Searching
from workers.runtime.context import Context, Pool, build
from workers.runtime.engine_host import EngineHost
from workers.runtime.log_tail import Words
from workers.runtime.permissions import ExternalPermissions
from workers.runtime.quarantine import Warden
from workers.runtime.reloading import Reloading
from workers.runtime.throttle import BatchThrottle

log = logging.getLogger(__name__)
Shown = tuple[frozenset[str], Mapping[str, bool]]  # models that are served; those of endpoints, and whether external
_REFRESH_SECONDS = 1.0  # jobs wait for what has come up


def main(arguments: list[str]) -> None:
    config = settings()
    logs.configure(config.log_level)
    os.nice(config.worker_nice)
    pool, queue = arguments[0], arguments[1] if len(arguments) > 1 else None
    if pool == "cpu":
        _cpu(config)
    elif pool == "io":
        _threads(config, Pool("io", (Queue.WEBHOOKS,), slots=1))
    elif pool in ("gpu", "embed"):
        memory.few_arenas()  # shards' threads are many, and so are LanceDB's
        _engine(config, pool, queue or (Queue.GENERATE if pool == "gpu" else Queue.EMBED))
    else:
        raise SystemExit(f"unknown pool {pool!r}: one of cpu, gpu, embed, io")


def _cpu(config: Settings) -> None:
    app = celery_app.build(config)
    _work(app, "cpu", tasks.CPU_POOL.queues, [f"--concurrency={max(2, (os.cpu_count() or 2) // 2)}"])


def _threads(config: Settings, pool: Pool) -> None:
    context = build(config, pool)
    context.keeper.listen = partial(_consume, pool.name, pool.queues)
    app = celery_app.build(config, threads=True)
    tasks.furnish(app, tasks.Process(context))
    _work(app, pool.name, pool.queues, ["--concurrency=4"])
    context.keeper.leave()


def _engine(config: Settings, name: str, queue: str) -> None:
    """The engine comes up beside Celery's consumer; no doorbell is rung for us before it is there."""
    words = Words()
    pool = Pool(name, (queue,), slots=config.shards_in_flight, state="starting")
    context = build(config, pool)
    engine = build_router(config, _models(context), queue, ExternalPermissions(context.db).allows)
    others = SharedExclusiveLock(config.data_dir / "run" / queue, config.lease_seconds)
    warden = Warden(context, engine, queue, words)
    asking = Asking(context)
    shelf = Shelf(context.db, config.cache_max_bytes, context.timings)
    needs = Needs(
        measure=engine.length,
        identity=engine.identity,
        others=ModelRouter(context, asking, engine, queue),
        search=asking.search,
        rooms=ContextLimits(config, lambda: engine.registry).of,
        shelf=shelf,
        checker=Checker(context.timings),
    )
    cached = before(engine, needs, config)
    throttle = BatchThrottle(lambda: engine.crowd(config.interactive_beside))
    shared = others if engine.shared else None
    host = EngineHost(cached, lambda: _restarted(context), shared, engine.handle_death, throttle)
    reranking = Reranking(context, host, queue)
    own = {
        searches.URL: Searching(context, host, reranking).answer,
        searches.RERANK_URL: reranking.answer,
        responses.COUNT_URL: Counting(host, needs.measure, needs.search, needs.rooms).answer,
    }
    keeper = context.keeper
    consumer = InteractiveConsumer(
        host,
        redis_url(config),
        queue,
        Limits.of(config),
        context.timings,
        own=own,
        paused=lambda: keeper.off,
        under_way=keeper.under_way,
    )
    keeper.listen = partial(_listen, consumer, name, pool.queues)
    admission = Admission(pool.slots)
    reloading = Reloading(context, host, engine, queue, others, partial(os.kill, os.getpid(), signal.SIGTERM))
    bring_up = partial(_bring_up, context, host, engine, consumer, reloading.look, warden)
    threading.Thread(target=bring_up, name="engine-start", daemon=True).start()
    app = celery_app.build(config, (queue,), threads=True)
    tasks.furnish(app, tasks.Process(context, tasks.Engine(host, admission)))
    _work(app, name, pool.queues, [f"--concurrency={admission.threads}"])
    context.keeper.leave()
    with suppress(TimeoutError):
        host.call(consumer.close()).result(2)
        host.call(asking.close()).result(2)
    host.close()
    shelf.close()
    logging.shutdown()
    words.flush()
    os._exit(0)  # engines leave threads behind that would hold the exit up


def _models(context: Context) -> Registry:
    """Waits for a models file that is right: to end and be started again would not mend it."""
    untold = True
    while True:
        try:
            return context.models.now()
        except ModelsFileError as error:
            if untold:
                log.error("models_file.rejected", extra={"reason": str(error)})  # noqa: TRY400
            untold = False
        context.stop.wait(_REFRESH_SECONDS)


def _work(app: Celery, name: str, queues: tuple[str, ...], argv: list[str]) -> None:
    app.set_default()
    common = ["--without-mingle", "--without-gossip", "--loglevel=WARNING", f"--hostname={_node(name)}"]
    app.worker_main(["worker", f"--queues={','.join(queues)}", *common, *argv])


def _listen(consumer: InteractiveConsumer, name: str, queues: tuple[str, ...], wanted: bool) -> bool:
    """As `_consume`, and so for clients who wait."""
    consumer.listen(wanted)
    return _consume(name, queues, wanted)


def _consume(name: str, queues: tuple[str, ...], wanted: bool) -> bool:
    """Have our own consumer take from these queues, or stop; False when the broker is away."""
    change = current_app.control.add_consumer if wanted else current_app.control.cancel_consumer
    try:
        for queue in queues:
            change(queue, destination=[_node(name)])
    except (OperationalError, OSError):
        log.warning("broker_away")
        return False
    return True


def _node(name: str) -> str:
    return str(nodenames.host_format(f"{name}-{os.getpid()}@%h"))


def _bring_up(
    context: Context,
    host: EngineHost,
    engine: Router,
    consumer: InteractiveConsumer,
    reload: Callable[[], None],
    warden: Warden,
) -> None:
    """Whatever goes wrong here ends the process: one without this thread would live on and serve nothing.

    So does an engine that does not come up, until it is left alone for that: a new process has a clean device.
    """
    try:
        warden.begin()
        host.start()
        memory.settle()
        log.info("engine_up", extra={"queue": consumer.queue})
        host.call(consumer.serve()).add_done_callback(partial(_consumer_ended, warden))
        _stay_announced(context, engine, consumer.queue, partial(_look, reload, warden, host))
    except Exception:
        if context.stop.is_set():
            return
        log.exception("engine_did_not_start")
        _end(warden)


def _end(warden: Warden) -> None:
    logging.shutdown()
    warden.excuse()
    os._exit(os.EX_SOFTWARE)  # the supervisor starts us again, with backoff


def _look(reload: Callable[[], None], warden: Warden, host: EngineHost) -> None:
    reload()
    warden.look(host)


def _consumer_ended(warden: Warden, serving: "Future[None]") -> None:
    """A worker that says it serves and answers nobody who waits is worse than none."""
    if not serving.cancelled() and (error := serving.exception()):
        log.error("interactive_ended", exc_info=error)
        _end(warden)


def _stay_announced(context: Context, engine: Router, queue: str, reload: Callable[[], None]) -> None:
    shown: Shown | None = None
    while True:
        reload()
        shown = _announce(context, engine, queue, shown)
        if context.stop.wait(_REFRESH_SECONDS):
            return


def _announce(context: Context, engine: Router, queue: str, shown: Shown | None) -> Shown:
    """Say which models are served; those that endpoints showed are remembered while the endpoint is away."""
    names, found = now = engine.there, engine.discovered
    if now == shown and context.standing.state == "ready":
        return now
    context.standing.models = tuple(sorted(names))
    context.standing.state = "ready"
    context.db.retrying(lambda session: workers.remember_all(session, found, queue), context.stop)
    context.keeper.announce()
    return now


def _restarted(context: Context) -> None:
    context.standing.restarts += 1
    memory.settle()  # the old engine is not for good


if __name__ == "__main__":
    main(sys.argv[1:])
