"""Fields that several requests share, with OpenAI's limits."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, WithJsonSchema

from api.http.bodies import Body, Many
from jobs.errors import InvalidRequest
from jobs.inference import context_options
from jobs.ledger import dependencies
from jobs.ledger.tables import Job

T = TypeVar("T")
MAX_METADATA_ENTRIES = 16


def _limit_entries(entries: Any) -> Any:
    """Keep one entry more than allowed, so that validation does not read the rest."""
    return dict(islice(entries.items(), MAX_METADATA_ENTRIES + 1)) if isinstance(entries, dict) else entries


#: The client's own names and values.
MetadataOf = Annotated[
    dict[Annotated[str, Field(max_length=64)], T],
    Field(max_length=MAX_METADATA_ENTRIES),
    BeforeValidator(_limit_entries),
]
Metadata = MetadataOf[Annotated[str, Field(max_length=512)]]
MetadataField = Annotated[Metadata | None, Field(default=None, description="Up to 16 strings of yours.")]

#: Options for a prompt that is too long. `jobs.inference.context_options` checks them, here and in the worker.
Context = Annotated[Any, WithJsonSchema({"anyOf": [context_options.schema(), {"type": "null"}]})]

_MONTH = 30 * 86_400
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")  # they make a name look like another one
_CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # the last two are line ends but no control characters


class ExpiresAfter(Body):
    """The time after its creation at which a file is removed."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=_MONTH)


def bracket_entries(query: Iterable[tuple[str, str]], param: str) -> list[tuple[str, str]]:
    """Return the keys and the values of the parameters `param[key]`.

    Raises: InvalidRequest, if there are more than an object has.
    """
    begin = f"{param}["
    texts = [(name[len(begin) : -1], text) for name, text in query if name.startswith(begin) and name.endswith("]")]
    if len(texts) > MAX_METADATA_ENTRIES:
        message = f"Invalid '{param}': at most {MAX_METADATA_ENTRIES} can be asked for, not {len(texts)}."
        raise InvalidRequest(message, param=param, code="invalid_value")
    return texts


def check_filename(name: str) -> str:
    """Return a file's name as it is stored: the last part of a path, printable, at most 255 characters.

    Raises: ValueError.
    """
    base = re.split(r"[/\\]", name)[-1].strip()
    if base in ("", ".", "..") or len(base) > 255:
        raise ValueError("A file name has 1 to 255 characters, and does not name a folder.")
    if _BIDI.search(base) or any(unicodedata.category(character) in _CONTROLS for character in base):
        raise ValueError("A file name has no control characters.")
    return base


Filename = Annotated[str, Field(max_length=4096), AfterValidator(check_filename)]


def filename(name: str | None, param: str) -> str:
    """Return the name of a file part.

    Raises: InvalidRequest.
    """
    try:
        return check_filename(name or "")
    except ValueError as error:
        raise InvalidRequest(str(error), param=param, code="invalid_filename") from error


def _limit_jobs(ids: list[str]) -> list[str]:
    if len(set(ids)) > dependencies.MAX_DEPENDENCIES:
        raise ValueError(f"A job waits for at most {dependencies.MAX_DEPENDENCIES} others.")
    return ids


#: The jobs that a new job waits for: it begins when all of them have completed.
AfterJobs = Annotated[
    Many[Annotated[str, Field(min_length=1, max_length=64)]],
    AfterValidator(_limit_jobs),
    Field(
        description=f"Ids of at most {dependencies.MAX_DEPENDENCIES} jobs that have to complete before this one begins."
    ),
]


class Dependent(BaseModel):
    """Fields of jobs that were created with `after`; other jobs omit both."""

    after: list[str] = Field(default=[], exclude_if=lambda after: not after)
    waiting_for: str | None = Field(default=None, exclude_if=lambda waiting_for: waiting_for is None)


def dependence(job: Job, after: Sequence[str]) -> dict[str, Any]:
    """Return the fields of `Dependent`."""
    return {"after": after, "waiting_for": wait_name(job)} if after else {}


def wait_name(job: Job) -> str | None:
    """Return what a job waits for, as clients see it."""
    return f"waiting_for_{job.waiting_for}" if job.waiting_for else None


def unix_seconds(at: float | None) -> int | None:
    """Return whole seconds, as the API shows times."""
    return None if at is None else int(at)
