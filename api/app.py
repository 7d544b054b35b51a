"""The composition root of the web process: `build()` makes the app and its collaborators.

Trace ─▶ CORS ─▶ Authenticate ─▶ Limit ─▶ FairShare ─▶ routes ─▶ one transaction ─▶ answer
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.middleware.cors import CORSMiddleware

from api import errors
from api.admin import (
    admin_keys,
    assignments,
    audit_logs,
    budgets,
    groups,
    invites,
    members,
    model_permissions,
    not_served,
    organization_projects,
    project_keys,
    project_settings,
    rate_limits,
    service_accounts,
    spend,
    usage,
    users,
)
from api.admin import roles as organization_roles
from api.batches import dry_run
from api.batches import routes as batches
from api.computations import Computations
from api.datasets import dataset_versions
from api.datasets import routes as datasets
from api.deps import Services
from api.evals import comparison as eval_comparison
from api.evals import imports as eval_imports
from api.evals import output_items
from api.evals import routes as evals
from api.evals import runs as eval_runs
from api.files import routes as files
from api.files import uploads
from api.finetuning import graders, model_files, model_imports, permissions
from api.finetuning import routes as finetuning
from api.finetuning import validation as fine_tuning_validation
from api.fleet import models, steering
from api.health import routes as health
from api.health.metrics import Exposition
from api.health.readiness import BrokerWatch, Watch
from api.http.middleware import OPEN, Authenticate, BodyLimit, FairShare, Trace
from api.inference import chat_completions, conversations, response_connections, responses
from api.inference import routes as inference
from api.inference.interactive import STREAM_HEADER
from api.jobs import explain, feed, results, throughput
from api.jobs import routes as jobs
from api.key_use import KeyUse
from api.monitoring import online_evaluations
from api.monitoring import routes as monitoring
from api.pages import console_files, login
from api.pages import routes as pages
from api.pipelines import routes as pipelines
from api.promotions import routes as promotions
from api.prompts import routes as prompts
from api.registry import aliases, families, feedback, flags, lineage, model_versions
from api.request_recorder import RequestRecorder
from api.retrieval import file_batches, indexes, search, sources, store_files
from api.retrieval import routes as vector_stores
from api.schedules import routes as schedules
from api.security import audit, keys, projects
from api.ttl_cache import Trusted
from api.webhooks import routes as webhooks
from api.wrong_keys import WrongKeys
from jobs.db.engine import Database
from jobs.fleet.models_file import Models
from jobs.inference.client import InferenceClient
from jobs.platform.storage import open_storage
from jobs.security.oidc import Provider
from jobs.settings import Settings, settings
from jobs.timings import Timings

#: Seconds that a request waits for the database before it answers 503.
_PATIENCE = 1.5
#: One for each thread that may use the database.
_CONNECTIONS = 40
#: Response headers that pages in a browser may read, besides those that they always may.
_EXPOSED = (
    "Idempotency-Replayed", "OpenAI-Poll-After-Ms", "Retry-After", "Retry-After-Ms", STREAM_HEADER, "X-Request-Id",
    "X-Should-Retry",
    *(f"X-RateLimit-{side}-{what}" for what in ("Requests", "Tokens", "Project-Tokens")
      for side in ("Limit", "Remaining", "Reset")),
)  # fmt: skip

ROUTERS: tuple[APIRouter, ...] = (
    files.router,
    uploads.router,
    dry_run.router,  # before batches: in /v1/batches/validate, `validate` is no id
    batches.router,
    inference.router,
    inference.rerank_router,
    chat_completions.router,
    responses.router,
    response_connections.router,
    inference.stream_router,
    conversations.router,
    inference.cache_router,
    vector_stores.router,
    store_files.router,
    file_batches.router,
    search.router,
    indexes.router,
    sources.router,
    models.router,
    aliases.router,
    flags.router,
    feedback.router,
    lineage.router,  # before model_versions: the name of a model may have slashes
    model_versions.router,
    families.router,
    steering.router,
    keys.router,
    projects.router,
    admin_keys.router,
    organization_projects.router,
    project_keys.router,
    service_accounts.router,
    usage.router,
    audit.router,
    model_permissions.router,
    rate_limits.router,
    project_settings.router,
    spend.router,
    budgets.router,
    users.router,
    invites.router,
    groups.router,
    organization_roles.router,
    assignments.router,
    members.router,
    audit_logs.router,
    not_served.router,
    fine_tuning_validation.router,
    graders.router,
    finetuning.router,
    model_files.router,
    model_imports.router,
    permissions.router,
    eval_imports.router,
    evals.router,
    eval_runs.router,
    output_items.router,
    eval_comparison.router,
    webhooks.router,
    jobs.router,
    explain.router,
    results.router,
    throughput.router,
    feed.router,
    schedules.router,
    pipelines.router,
    promotions.router,
    monitoring.router,
    online_evaluations.router,
    prompts.router,
    datasets.router,
    dataset_versions.router,
    health.router,
    login.router,
    console_files.router,
    pages.router,
)


def build(config: Settings | None = None, timings: Timings = Timings()) -> FastAPI:
    """Build the app of one process."""
    config = config or settings()
    registry = Models(config)
    max_connections = _CONNECTIONS + 10
    db = Database(
        config.database,
        patience=_PATIENCE,
        pool_size=_CONNECTIONS,
        max_connections=max_connections,
        urgent=True,
        timings=timings,
    )
    broker = BrokerWatch(config, timings.readiness_cached)
    services = Services(
        config=config,
        db=db,
        storage=open_storage(config.storage),
        models=registry,
        inference=InferenceClient(config, timings),
        targets=Trusted(timings.trusted),
        alias_routings=Trusted(timings.trusted),
        rules=Trusted(timings.trusted),
        timings=timings,
        wrong_keys=WrongKeys(config.wrong_keys_per_minute),
        key_use=KeyUse(db),
        requests=RequestRecorder(db),
        computations=Computations(timings.computation_patience),
        feed_bounds=Trusted(timings.job_look),
    )
    app = FastAPI(
        title="Nightmill",
        version=version("nightmill"),
        description="The asynchronous half of the OpenAI API on your own workers.",
        docs_url=None,  # FastAPI's page loads scripts from a CDN: `api.pages` has its own
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    app.state.services = services
    app.state.provider = Provider(config, timings.provider_keys) if config.oidc_issuer else None
    exposition = Exposition(config, db, registry, broker.is_full, timings.metrics_cached)
    app.state.health = health.Health(exposition, broker, Watch(timings.readiness_cached))
    for router in ROUTERS:
        app.router.routes.extend(router.routes)  # `include_router` would build each route a second time
    errors.install(app)
    app.add_middleware(FairShare, config=config, patience=timings.thread_patience)
    app.add_middleware(BodyLimit, config=config, idle_seconds=timings.body_patience)
    app.add_middleware(
        Authenticate, services=services, open_paths=OPEN | pages.PATHS | login.PATHS, open_below=console_files.PATH
    )
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
    app.add_middleware(Trace, access_log=config.access_log)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    yield {}
    app.state.services.stopping.set()
    await app.state.services.key_use.close()
    await app.state.services.shadow_tasks.close()
    await app.state.services.requests.close()
    await app.state.services.inference.close()
    app.state.services.db.close()
