"""How a resource's router is made: strict JSON, the errors it may answer, the key it needs."""

from fastapi import APIRouter, Security
from fastapi.security import HTTPBearer

from api.errors import RESPONSES
from api.http.bodies import StrictRoute

#: For the OpenAPI document alone: the middleware has checked the key before.
_KEY = HTTPBearer(auto_error=False, scheme_name="ApiKey", description="A project's key: `nightmill keys create`.")


def resource(tag: str) -> APIRouter:
    """The router of one resource, below /v1."""
    return APIRouter(
        prefix="/v1", tags=[tag], route_class=StrictRoute, responses=RESPONSES, dependencies=[Security(_KEY)]
    )
