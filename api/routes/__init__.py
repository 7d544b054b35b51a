"""One module a resource; `ROUTERS` is the table of contents."""

from fastapi import APIRouter

from api.routes import (
    batches,
    cache,
    conversations,
    files,
    generation,
    health,
    jobs,
    models,
    page,
    responses,
    schedules,
    streams,
    uploads,
    validation,
    vector_store_compare,
    vector_store_file_batches,
    vector_store_files,
    vector_store_indexes,
    vector_store_search,
    vector_store_sources,
    vector_stores,
    webhook_endpoints,
)

ROUTERS: tuple[APIRouter, ...] = (
    files.router,
    uploads.router,
    validation.router,  # before batches: /v1/batches/validate is no id
    batches.router,
    generation.router,
    responses.router,
    streams.router,
    conversations.router,
    cache.router,
    vector_stores.router,
    vector_store_files.router,
    vector_store_file_batches.router,
    vector_store_search.router,
    vector_store_indexes.router,
    vector_store_compare.router,
    vector_store_sources.router,
    models.router,
    webhook_endpoints.router,
    jobs.router,
    schedules.router,
    health.router,
    page.router,
)
