"""The base of all tables: names of constraints (so that migrations can drop them) and the column types."""

from collections.abc import Collection, Mapping
from typing import Any, cast

from sqlalchemy import JSON, BigInteger, ColumnElement, Float, Integer, MetaData, String, Table
from sqlalchemy.orm import DeclarativeBase

_NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}

#: Autoincrementing keys: SQLite only does that for INTEGER.
Serial = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """The base of all models. Times are unix seconds (float), sizes bytes, JSON columns plain dicts and lists."""

    metadata = MetaData(naming_convention=_NAMING)
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy reads it from the class)
        str: String(255),
        int: BigInteger,
        float: Float(53),
        dict[str, Any]: JSON,
        list[Any]: JSON,
    }


def hide_from_index(column: Any) -> ColumnElement[str]:
    """Return a column of text as an expression, for a condition by which the database shall take no index.

    SQLite is given no statistics: of two conditions it may take the index of the one that nearly every row meets.
    """
    return cast("ColumnElement[str]", column.concat(""))


def matching(model: type[Base], values: Mapping[str, str], *, indexed: Collection[str]) -> list[ColumnElement[bool]]:
    """Return the condition of each column, by its name, to have its value; only those of `indexed` show an index."""
    columns = {name: getattr(model, name) for name in values}
    return [
        (columns[name] if name in indexed else hide_from_index(columns[name])) == value
        for name, value in values.items()
    ]


def table_of(model: type[Base]) -> Table:
    """Return the table of a model, for statements that need no session's objects: they cost a fraction."""
    return cast(Table, model.__table__)


def row_of(instance: Base) -> dict[str, Any]:
    """Return the columns that were given to an object that is in no session."""
    columns = table_of(type(instance)).columns
    return {name: value for name, value in vars(instance).items() if name in columns}
