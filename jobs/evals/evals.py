"""Evals: the JSON schema of their items, and how they are removed with their runs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from jobs.errors import Conflict, InvalidRequest
from jobs.evals import runs
from jobs.evals.tables import Eval, EvalRun
from jobs.evals.templates import TemplateReference
from jobs.ledger import ledger
from jobs.ledger.states import LIVE
from jobs.ledger.tables import Job

PREFIX: Final = "eval_"
#: Bytes of the schema of items: it is read with each run.
MAX_SCHEMA_BYTES: Final = 65_536
#: Runs removed in one transaction.
REMOVED_AT_ONCE: Final = 20
_MAX_ERROR: Final = 300  # characters of an error

#: Keywords that may allow an item more properties than `properties` names.
_COMBINING: Final = frozenset({
    "$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "patternProperties",
    "unevaluatedProperties",
})  # fmt: skip

#: The schema of items that are stored chat completions or responses.
STORED_ITEM: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {"input": {"type": "array"}, "model": {"type": "string"}, "metadata": {"type": "object"}},
}
SAMPLE: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "output_text": {"type": "string"},
        "output_json": {},
        "output_tools": {"type": "array", "items": {"type": "object"}},
        "choices": {"type": "array", "items": {"type": "object"}},
    },
}


def check_item_schema(schema: Mapping[str, Any]) -> None:
    """Check that the schema of items is one, and small. Raises InvalidRequest."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    param = "data_source_config.item_schema"
    if len(json.dumps(schema)) > MAX_SCHEMA_BYTES:
        message = f"Invalid '{param}': it has more than {MAX_SCHEMA_BYTES} bytes."
        raise InvalidRequest(message, param=param, code="schema_too_large")
    try:
        Draft202012Validator.check_schema(dict(schema))
    except SchemaError as error:
        message = f"Invalid '{param}': {error.message}"[:_MAX_ERROR]
        raise InvalidRequest(message, param=param, code="invalid_schema") from error
    except RecursionError as error:
        raise InvalidRequest(f"Invalid '{param}': it never ends.", param=param, code="invalid_schema") from error


def check_references(config: Mapping[str, Any], references: Sequence[TemplateReference], param: str) -> None:
    """Check that the items of an eval have what a grader at `param` refers to, and samples where it refers to one.

    Raises: InvalidRequest.
    """
    if config["type"] != "custom":
        return
    fields = _fields(config["item_schema"])
    for reference in references:
        if reference.namespace == "sample" and not config["include_sample_schema"]:
            message = "The eval expects no samples: 'data_source_config.include_sample_schema' is not true."
        elif reference.namespace == "item" and fields and reference.steps and reference.steps[0] not in fields:
            message = "It is not a property of 'data_source_config.item_schema', which has no 'additionalProperties'."
        else:
            continue
        raise InvalidRequest(f"Invalid '{param}': '{reference}'. {message}", param=param, code="invalid_variable")


def _fields(schema: Mapping[str, Any]) -> frozenset[str]:
    """Return the properties that a schema names; none where an item may have others.

    A schema that leaves `additionalProperties` out defines the variables of an eval, as OpenAI reads it.
    """
    properties, is_open = schema.get("properties"), schema.get("additionalProperties", False) is not False
    if not isinstance(properties, dict) or is_open or not _COMBINING.isdisjoint(schema):
        return frozenset()
    return frozenset(properties)


def item_schema(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of the items of an eval with this data source config."""
    return dict(config.get("item_schema") or STORED_ITEM)


def row_schema(item_schema: Mapping[str, Any], *, with_sample: bool) -> dict[str, Any]:
    """Return the schema of a row: its item, and its sample where rows have one."""
    properties = {"item": dict(item_schema)} | ({"sample": dict(SAMPLE)} if with_sample else {})
    return {"type": "object", "properties": properties, "required": list(properties)}


def remove_runs(session: Session, run_ids: Sequence[str], *, actor: str) -> list[str]:
    """Remove runs: their rows, and what is left to do of them. Return the folders of their objects."""
    steps = runs.steps_of(session, run_ids)
    for run_id in sorted(run_ids):
        for job_id in (run_id, *(step.id for step in steps[run_id])):
            _cancel(session, job_id, actor=actor)
    session.execute(delete(EvalRun).where(EvalRun.id.in_(run_ids)))
    ids = [*run_ids, *(step.id for jobs in steps.values() for step in jobs)]
    ended = session.scalars(select(Job.id).where(Job.id.in_(ids), Job.state.not_in(LIVE)))
    return [f"jobs/{job_id}" for job_id in ended]  # a live job removes its own as it ends


def _cancel(session: Session, job_id: str, *, actor: str) -> None:
    try:
        ledger.cancel(session, job_id, actor=actor)
    except Conflict:  # it has ended, or is about to
        return


def some_runs(session: Session, eval_id: str) -> Sequence[str]:
    """Return some runs of an eval, none when all are removed."""
    return session.scalars(select(EvalRun.id).where(EvalRun.eval_id == eval_id).limit(REMOVED_AT_ONCE)).all()


def lock(session: Session, eval_id: str, project_id: str) -> Eval | None:
    """Return an eval, locked so that no run is added while it is removed, or the reverse."""
    return session.scalar(select(Eval).where(Eval.id == eval_id, Eval.project_id == project_id).with_for_update())
