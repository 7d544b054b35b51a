"""Check JSON schemas of clients, and make their validators.

A schema of a few hundred bytes can take for ever, or all memory: callers run in a child process with limits. Importing
this module imports jsonschema.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import validator_for
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

MAX_ERROR: Final = 300  # characters of an error
_SCHEMAS: Final = 256  # compiled ones: the lines of a batch mostly have the same


class InvalidJsonSchema(Exception):
    """A schema that is none. The text says why, as a sentence."""


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise InvalidJsonSchema for what a schema makes its validator raise. MemoryError goes on."""
    try:
        yield
    except SchemaError as error:
        raise InvalidJsonSchema(f"{path_of(error)}{error.message}"[:MAX_ERROR]) from error
    except Unresolvable as error:
        raise InvalidJsonSchema(f"a $ref leads nowhere: {error.ref}"[:MAX_ERROR]) from error
    except RecursionError as error:
        raise InvalidJsonSchema("it never ends.") from error
    except MemoryError:
        raise
    except Exception as error:  # old drafts accept schemas that break jsonschema
        raise InvalidJsonSchema(f"it cannot be used: {type(error).__name__}.") from error


@lru_cache(_SCHEMAS)
def validator_of(raw: bytes) -> Any:
    """Return the validator of a schema, which fetches nothing. Raises what `translate_errors` expects."""
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


def path_of(error: ValidationError | SchemaError) -> str:
    """Return where in the schema or the value an error is, with a colon; empty for the whole."""
    return f"{error.json_path}: " if error.absolute_path else ""
