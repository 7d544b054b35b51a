"""Fields that several requests share, with OpenAI's limits."""

import re
import unicodedata
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from api.http.bodies import Body
from jobs.errors import InvalidRequest
from jobs.inference import context_options

T = TypeVar("T")
MOST_LABELS = 16


def _few(labels: Any) -> Any:
    """One more than there may be is too many: what is wrong with the rest is not looked for."""
    return dict(islice(labels.items(), MOST_LABELS + 1)) if isinstance(labels, dict) else labels


#: A client's own names, and what it says of them.
Labels = Annotated[dict[Annotated[str, Field(max_length=64)], T], Field(max_length=MOST_LABELS), BeforeValidator(_few)]
Metadata = Labels[Annotated[str, Field(max_length=512)]]
MetadataField = Annotated[Metadata | None, Field(default=None, description="Up to 16 strings of yours.")]

#: What is to be done about a prompt that is too long. `jobs.inference.context_options` judges it, here and where it
#: is done.
Context = Annotated[Any, WithJsonSchema({"anyOf": [context_options.schema(), {"type": "null"}]})]

_MONTH = 30 * 86_400
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")  # they make a name read as another
_CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # the last two: ends of line that are no control characters


class ExpiresAfter(Body):
    """When a file is removed, counted from its creation."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=_MONTH)


def check_filename(name: str) -> str:
    """A file's name as it is kept: the last part of a path, printable, at most 255 characters."""
    base = re.split(r"[/\\]", name)[-1].strip()
    if base in ("", ".", "..") or len(base) > 255:
        raise ValueError("A file name has 1 to 255 characters, and is no folder.")
    if _BIDI.search(base) or any(unicodedata.category(character) in _CONTROLS for character in base):
        raise ValueError("A file name has no control characters.")
    return base


Filename = Annotated[str, Field(max_length=4096), AfterValidator(check_filename)]


def filename(name: str | None, param: str) -> str:
    """The name of a file part. Raises InvalidRequest."""
    try:
        return check_filename(name or "")
    except ValueError as error:
        raise InvalidRequest(str(error), param=param, code="invalid_filename") from error


def when(at: float | None) -> int | None:
    """Whole seconds, as the wire has them."""
    return None if at is None else int(at)
