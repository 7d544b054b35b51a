"""The confined child process that checks texts until its parent closes the channel.

Schemas and texts are untrusted: a schema of a few hundred bytes can take for ever, or all memory. Nothing is fetched.
"""

import json
import resource
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import validator_for
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from workers.middleware.schema_checker_protocol import (
    CheckRequest,
    CheckResult,
    InvalidSchema,
    decode_request,
    encode,
)
from workers.sandbox import resource_limits
from workers.sandbox.channel import Channel

MEMORY: Final = 512 << 20  # bytes, in addition to those of the start
_SCHEMAS: Final = 256  # compiled ones: the lines of a batch mostly have the same
_LONGEST: Final = 300  # characters of an error


def main(channel: Channel) -> None:
    resource_limits.lower(resource.RLIMIT_AS, resource_limits.address_space() + MEMORY, for_good=True)
    channel.ready()
    while (received := channel.receive()) is not None:
        message, _ = received
        channel.send(encode(check(decode_request(message))))


def check(ask: CheckRequest) -> CheckResult | InvalidSchema:
    """Check the texts of a request; without texts, check only the schema."""
    try:
        validator = _validator(ask.schema)
        return CheckResult([_fault(validator, text) for text in ask.texts])
    except SchemaError as error:
        return InvalidSchema(f"{_param_path(error)}{error.message}"[:_LONGEST])
    except Unresolvable as error:
        return InvalidSchema(f"a $ref leads nowhere: {error.ref}"[:_LONGEST])
    except RecursionError:
        return InvalidSchema("it never ends.")
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (old drafts accept schemas that break jsonschema)
        return InvalidSchema(f"it cannot be used: {type(error).__name__}.")


@lru_cache(_SCHEMAS)
def _validator(raw: bytes) -> Any:
    """Return the validator of a schema.

    Raises: SchemaError, Unresolvable.
    """
    schema = json.loads(raw)
    kind = validator_for(schema, default=Draft202012Validator)
    kind.check_schema(schema)
    validator = kind(schema, registry=Registry())
    if b'"$id"' not in raw:  # an $id changes the base of references
        resolver = Registry().with_resource("", Resource.from_contents(schema, DRAFT202012)).resolver()
        for reference in dict.fromkeys(_references(schema)):
            resolver.lookup(reference)
    return validator


def _references(value: Any) -> Iterator[str]:
    for name, member in value.items() if isinstance(value, dict) else ():
        if name == "$ref" and isinstance(member, str):
            yield member
    for member in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _references(member)


def _fault(validator: Any, text: str) -> str | None:
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return f"it is not JSON: {error}"[:_LONGEST]
    wrong = next(validator.iter_errors(value), None)
    return None if wrong is None else f"{_param_path(wrong)}{wrong.message}"[:_LONGEST]


def _param_path(error: ValidationError | SchemaError) -> str:
    return f"{error.json_path}: " if error.absolute_path else ""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON value")
