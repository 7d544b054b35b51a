"""One module a resource; `ROUTERS` is the table of contents."""

from fastapi import APIRouter

from api.routes import batches, files, models, uploads

ROUTERS: tuple[APIRouter, ...] = (
    files.router,
    uploads.router,
    batches.router,
    models.router,
)
