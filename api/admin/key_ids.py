"""The ids of keys as OpenAI writes them, for the routes of all keys.

A key's id is `key_` and the part of the key that finds it. Routes take it with and without the prefix.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Final, TypeVar

from fastapi import Path
from pydantic import AfterValidator
from sqlalchemy.orm import Session

from api.admin.lists import AdminPage, admin_page
from api.errors import clip
from jobs.errors import NotFound
from jobs.security.tables import ApiKey

Shown = TypeVar("Shown")
_PREFIX: Final = "key_"


def parse_id(key_id: str) -> str:
    """Return what finds a key, of its id with or without the prefix."""
    return key_id.removeprefix(_PREFIX)


KeyId = Annotated[str, Path(max_length=64, description="Id of the key."), AfterValidator(parse_id)]


def show_id(key_id: str) -> str:
    """Return the id of a key as clients see it."""
    return f"{_PREFIX}{key_id}"


def key_page(rows: Sequence[ApiKey], more: bool, show: Callable[[ApiKey], Shown]) -> AdminPage[Shown]:
    """Return keys as a page, each shown by `show`."""
    page = admin_page(rows, more, show)
    cursors = {"first_id": page.first_id, "last_id": page.last_id, "next": page.next}
    return page.model_copy(update={name: show_id(key_id) for name, key_id in cursors.items() if key_id})


def find_enabled_key(session: Session, project_id: str, key_id: str, param: str) -> ApiKey:
    """Return a key of a project that is not revoked. Raises: NotFound."""
    row = session.get(ApiKey, key_id)
    if row is None or row.project_id != project_id or row.revoked_at is not None:
        raise NotFound(f"No API key found with id '{clip(key_id)}'.", param=param)
    return row
