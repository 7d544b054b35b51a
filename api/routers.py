"""One module a resource; `ROUTERS` is the table of contents."""

from fastapi import APIRouter

from api.batches import dry_run, schedules
from api.batches import routes as batches
from api.files import routes as files
from api.files import uploads
from api.fleet import models
from api.health import routes as health
from api.inference import (
    cache,
    compaction,
    completion_routes,
    conversation_routes,
    input_tokens,
    response_routes,
    resumable_streams,
)
from api.inference import routes as generation
from api.jobs import routes as jobs
from api.pages import routes as page
from api.retrieval import compare, file_batches, indexes, search, sources, store_files
from api.retrieval import routes as vector_stores
from api.webhooks import routes as webhook_endpoints

ROUTERS: tuple[APIRouter, ...] = (
    files.router,
    uploads.router,
    dry_run.router,  # before batches: /v1/batches/validate is no id
    batches.router,
    generation.router,
    completion_routes.router,
    response_routes.router,
    input_tokens.router,
    compaction.router,
    resumable_streams.router,
    conversation_routes.router,
    cache.router,
    vector_stores.router,
    store_files.router,
    file_batches.router,
    search.router,
    indexes.router,
    compare.router,
    sources.router,
    models.router,
    webhook_endpoints.router,
    jobs.router,
    schedules.router,
    health.router,
    page.router,
)
