"""What the specification of OpenLineage, version 2-0-2, demands of a run event, as a JSON schema of our own."""

from typing import Any, Final

from jsonschema import Draft202012Validator

_URI: Final = {"type": "string", "pattern": "^[a-z][a-z0-9+.-]*:[^ ]+$"}
_HEX: Final = "[0-9a-f]"
_RUN_ID: Final = {"type": "string", "pattern": f"^{_HEX}{{8}}(-{_HEX}{{4}}){{3}}-{_HEX}{{12}}$"}
_TIME: Final = {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})$"}
_NAMED: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["namespace", "name"],
    "properties": {"namespace": {"type": "string"}, "name": {"type": "string"}},
}
_FACET: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["_producer", "_schemaURL"],
    "properties": {"_producer": _URI, "_schemaURL": _URI},
}


def _facets(**required: list[str]) -> dict[str, Any]:
    """Return the schema of facets: those that are named have these fields as well."""
    known = {name: {**_FACET, "required": _FACET["required"] + fields} for name, fields in required.items()}
    return {"type": "object", "properties": known, "additionalProperties": _FACET}


_DATASETS: Final[dict[str, Any]] = {
    "type": "array",
    "items": {
        **_NAMED,
        "properties": _NAMED["properties"] | {"facets": _facets(version=["datasetVersion"])},
    },
}
_RUN_EVENT: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["eventTime", "producer", "schemaURL", "run", "job"],
    "properties": {
        "eventType": {"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
        "eventTime": _TIME,
        "producer": _URI,
        "schemaURL": {"const": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"},
        "run": {
            "type": "object",
            "required": ["runId"],
            "properties": {
                "runId": _RUN_ID,
                "facets": _facets(parent=["run", "job"], errorMessage=["message", "programmingLanguage"]),
            },
        },
        "job": {
            **_NAMED,
            "properties": _NAMED["properties"] | {"facets": _facets(jobType=["processingType", "integration"])},
        },
        "inputs": _DATASETS,
        "outputs": _DATASETS,
    },
}


def check_run_event(event: dict[str, Any]) -> dict[str, Any]:
    """Return a run event that is valid. Raises ValidationError."""
    Draft202012Validator(_RUN_EVENT).validate(event)
    return event
