"""One module a resource; `ROUTERS` is the table of contents."""

from fastapi import APIRouter

from api.routes import (
    batches,
    conversations,
    files,
    generation,
    health,
    jobs,
    models,
    responses,
    schedules,
    uploads,
    validation,
    webhook_endpoints,
)

ROUTERS: tuple[APIRouter, ...] = (
    files.router,
    uploads.router,
    validation.router,  # before batches: /v1/batches/validate is no id
    batches.router,
    generation.router,
    responses.router,
    conversations.router,
    models.router,
    webhook_endpoints.router,
    jobs.router,
    schedules.router,
    health.router,
)
