"""The confined child process that checks texts until its parent closes the channel.

Schemas and texts are untrusted: a schema of a few hundred bytes can take for ever, or all memory. Nothing is fetched.
"""

import json
import resource
from typing import Any, Final

from jobs.requests.json_schemas import MAX_ERROR, InvalidJsonSchema, path_of, translate_errors, validator_of
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


def main(channel: Channel) -> None:
    resource_limits.lower(resource.RLIMIT_AS, resource_limits.address_space() + MEMORY, for_good=True)
    channel.ready()
    while (received := channel.receive()) is not None:
        message, _ = received
        channel.send(encode(check(decode_request(message))))


def check(ask: CheckRequest) -> CheckResult | InvalidSchema:
    """Check the texts of a request; without texts, check only the schema."""
    try:
        with translate_errors():
            validator = validator_of(ask.schema)
            return CheckResult([_fault(validator, text) for text in ask.texts])
    except InvalidJsonSchema as error:
        return InvalidSchema(str(error))


def _fault(validator: Any, text: str) -> str | None:
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return f"it is not JSON: {error}"[:MAX_ERROR]
    wrong = next(validator.iter_errors(value), None)
    return None if wrong is None else f"{path_of(wrong)}{wrong.message}"[:MAX_ERROR]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON value")
