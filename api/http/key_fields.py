"""The fields of new and changed keys, and what the key of a request may grant: no permission that it lacks."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Final

from pydantic import Field

from api.deps import Caller
from api.http.bodies import Many
from jobs.clock import now
from jobs.errors import MissingPermission
from jobs.security import permissions
from jobs.security.keys import FoundKey

_YEAR: Final = 365 * 86_400
ExpiresIn = Annotated[int | None, Field(ge=1, le=_YEAR, description="Seconds from now; null: it does not expire.")]
Name = Annotated[str, Field(min_length=1, max_length=255)]
Scopes = Annotated[
    Many[Annotated[str, Field(max_length=96)]],
    Field(max_length=100, description="Permissions that the key is narrowed to; empty: all of its owner."),
]


def end_after(seconds: int | None, latest: float | None = None) -> float | None:
    """Return when a key expires whose lifetime begins now, and which lives until `latest` at most."""
    ends = [end for end in (latest, seconds and now() + seconds) if end is not None]
    return min(ends, default=None)


def check_grant(caller: Caller | FoundKey, scopes: Sequence[str], owned: Iterable[str]) -> None:
    """Check that the caller has each permission that it gives: those of a role or owner, narrowed to scopes, if any.

    Raises: InvalidRequest, for an unknown scope, and MissingPermission.
    """
    permissions.check_scopes(scopes, "scopes")
    granted = permissions.expand(scopes).intersection(owned) if scopes else frozenset(owned)
    if missing := granted - caller.permissions:
        raise MissingPermission(min(missing))
