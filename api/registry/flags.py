"""Evaluate aliases as feature flags, by the OpenFeature Remote Evaluation Protocol (OFREP, version 1).

The flag of an alias is a text: the model that answers the alias, drawn as a request draws it. Of a sticky alias the
`targetingKey` of the context has the same model as the `safety_identifier` of requests. Errors have the fields of the
protocol beside those of this API: https://github.com/open-feature/protocol
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import Path
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from api.deps import Call
from api.errors import clip, describe
from api.http.bodies import Body, resource
from jobs.errors import InvalidRequest, NightmillError, NotFound
from jobs.fleet import access
from jobs.registry import aliases
from jobs.requests.endpoints import CHAT

router = resource("Aliases", area="model")


class EvaluateFlag(Body):
    """The context of an evaluation. All but `targetingKey`, who asks, is ignored."""

    context: dict[str, Any] = Field(default={})


class FlagMetadata(BaseModel):
    """The incumbent of the alias, and whether each `targetingKey` has the same model."""

    incumbent: str
    sticky: bool


class EvaluatedFlag(BaseModel):
    """The model that answers an alias, as `value` and as `variant`; `SPLIT` is a draw among several."""

    key: str
    value: str
    variant: str
    reason: Literal["STATIC", "SPLIT"]
    metadata: FlagMetadata


@router.post("/ofrep/v1/evaluate/flags/{alias:path}", response_model=EvaluatedFlag)
def evaluate_flag(
    call: Call, alias: Annotated[str, Path(max_length=255)], body: EvaluateFlag
) -> EvaluatedFlag | JSONResponse:
    """Draw the model that answers an alias, as OpenFeature's OFREP providers ask."""
    subject = body.context.get("targetingKey")
    if not isinstance(subject, str | None):
        error = InvalidRequest("'targetingKey' is a text.", param="context.targetingKey", code="invalid_type")
        return _fail(error, alias, "INVALID_CONTEXT")
    registry = call.services.registry()
    with call.db.read() as session:
        routing = access.routing_of_alias(session, registry, alias, call.project_id)
        if routing is None:
            model = access.static_aliases(session, registry, call.project_id).get(alias)
            if model is None:
                missing = NotFound(f"No alias found with id '{clip(alias)}'.", param="alias")
                return _fail(missing, alias, "FLAG_NOT_FOUND")
            routing = aliases.single(model)
    model = access.draw(replace(call.work(alias, CHAT), subject=subject or call.caller.key_id), routing).model
    return EvaluatedFlag(
        key=alias,
        value=model,
        variant=model,
        reason="SPLIT" if len(routing.targets) > 1 else "STATIC",
        metadata=FlagMetadata(incumbent=routing.incumbent, sticky=routing.sticky),
    )


def _fail(error: NightmillError, key: str, code: str) -> JSONResponse:
    """Answer an error in the shapes of this API and of the protocol."""
    fields = {"key": key, "errorCode": code, "errorDetails": error.message}
    return JSONResponse(describe(error) | fields, error.status)
