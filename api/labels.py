"""Lists by `metadata`: `metadata[key]=value` selects, any number of times; `metadata=null` what has none."""

from collections.abc import Iterable
from typing import Any, TypeVar

from sqlalchemy import Select, exists, func, literal, or_, select

Row = TypeVar("Row")


def labelled(statement: Select[Row], labels: Any, query: Iterable[tuple[str, str]], *, sqlite: bool) -> Select[Row]:
    """The rows whose column `labels` has all that the query asks for."""
    for name, value in query:
        statement = _labelled(statement, labels, name, value, sqlite=sqlite)
    return statement


def _labelled(statement: Select[Row], labels: Any, name: str, value: str, *, sqlite: bool) -> Select[Row]:
    if name == "metadata" and value == "null":
        kind = func.json_type(labels) if sqlite else func.json_typeof(labels)
        return statement.where(or_(labels.is_(None), kind == "null"))
    if not (name.startswith("metadata[") and name.endswith("]")):
        return statement
    key = name[len("metadata[") : -1]
    if not sqlite:
        return statement.where(labels.op("->>")(key) == value)
    pairs = func.json_each(labels).table_valued("key", "value")  # a path would give quotes in a key a meaning
    return statement.where(
        exists(select(literal(1)).select_from(pairs).where(pairs.c.key == key, pairs.c.value == value))
    )
