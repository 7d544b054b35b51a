"""Check in the sandbox of python graders that a text is JSON which is valid under a schema."""

import json
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field

from jobs.evals.graders.base import (
    OTHER,
    Grader,
    GradingCase,
    GradingError,
    GradingParts,
    MissingPart,
    Template,
    Values,
)
from jobs.evals.graders.python import missing_sandbox

MAX_SCHEMA_BYTES: Final = 64 << 10
#: Says in the sandbox whether a text is JSON that is valid under a schema. No reference is fetched.
_CHECK_SCHEMA: Final = """
import json
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for
from referencing import Registry

def refuse(constant):
    raise ValueError(constant)

def grade(sample, item):
    kind = validator_for(item["schema"], default=Draft202012Validator)
    kind.check_schema(item["schema"])
    try:
        value = json.loads(item["text"], parse_constant=refuse)
    except (ValueError, RecursionError):
        return 0
    return kind(item["schema"], registry=Registry()).is_valid(value)
"""


def _check_schema_size(schema: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(schema)) > MAX_SCHEMA_BYTES:
        raise ValueError(f"A schema has at most {MAX_SCHEMA_BYTES} bytes.")
    return schema


class JsonSchemaMatch(Grader):
    """Check that `input` is JSON which is valid under `schema`, in the sandbox of python graders."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)

    limits: ClassVar[str] = (
        f"{MAX_SCHEMA_BYTES >> 10} KiB of a schema; [those of the sandbox](../guides/graders.md#python-graders)"
    )

    type: Literal["json_schema"]
    input: Template
    schema_: Annotated[dict[str, Any], Field(alias="schema"), AfterValidator(_check_schema_size)]

    def missing(self, deployment: GradingParts) -> MissingPart | None:
        return missing_sandbox(deployment)

    def score(self, case: GradingCase) -> tuple[float, Values]:
        """Check a text in the sandbox: a schema of a few bytes can take for ever, or all memory."""
        item = {"schema": self.schema_, "text": case.render(self.input)}
        try:
            return case.run_python(_CHECK_SCHEMA, item, {}), {}
        except GradingError as error:
            raise GradingError(OTHER, f"The schema could not be checked: {error}") from error
