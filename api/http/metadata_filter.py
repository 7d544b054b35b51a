"""Lists by `metadata`: `metadata[key]=value` selects, up to 16 times; `metadata=null` what has none."""

from collections.abc import Iterable
from typing import Any, TypeVar, cast

from sqlalchemy import ColumnElement, Select, exists, func, literal, or_, select

from api.http.fields import MOST_LABELS
from jobs.errors import InvalidRequest

Row = TypeVar("Row")


def labelled(statement: Select[Row], labels: Any, query: Iterable[tuple[str, str]], *, sqlite: bool) -> Select[Row]:
    """The rows whose column `labels` has all that the query asks for. Raises InvalidRequest."""
    found = [one for name, value in query if (one := _condition(labels, name, value, sqlite=sqlite)) is not None]
    if len(found) > MOST_LABELS:  # of which nothing has so many
        message = f"Invalid 'metadata': at most {MOST_LABELS} can be asked for, not {len(found)}."
        raise InvalidRequest(message, param="metadata", code="invalid_value")
    return statement.where(*found)


def _condition(labels: Any, name: str, value: str, *, sqlite: bool) -> ColumnElement[bool] | None:
    if name == "metadata" and value == "null":
        kind = func.json_type(labels) if sqlite else func.json_typeof(labels)
        return or_(labels.is_(None), kind == "null")
    if not (name.startswith("metadata[") and name.endswith("]")):
        return None
    key = name[len("metadata[") : -1]
    if not sqlite:
        return cast("ColumnElement[bool]", labels.op("->>")(key) == value)
    pairs = func.json_each(labels).table_valued("key", "value")  # a path would give quotes in a key a meaning
    return exists(select(literal(1)).select_from(pairs).where(pairs.c.key == key, pairs.c.value == value))
