"""Add the tables of the organization: accounts, groups, roles; usage, prices, budgets and limits."""

from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine

revision = "0048"
down_revision = "0047"
branch_labels = None
depends_on = None

SERIAL: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TOKENS: Final = "input_tokens cached_tokens output_tokens reasoning_tokens"


def columns(kind: TypeEngine[Any], required: str, optional: str = "") -> list[sa.Column[Any]]:
    """Return a column for each name; those of `optional` may be null."""
    names = f"{required} {optional}".split()
    return [sa.Column(name, kind, nullable=name in optional.split()) for name in names]


ids = partial(columns, sa.String(64))
strings = partial(columns, sa.String(255))
words = partial(columns, sa.String(16))
integers = partial(columns, sa.BigInteger())
floats = partial(columns, sa.Float(53))
json = partial(columns, sa.JSON())


def create(name: str, key: str, *items: SchemaItem, **options: Any) -> None:
    """Create a table with the columns of `key` as its primary key."""
    op.create_table(name, *items, sa.PrimaryKeyConstraint(*key.split(), name=f"pk_{name}"), **options)


def where(condition: str) -> dict[str, Any]:
    """Return the options of an index that holds only the rows that meet the condition."""
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    _accounts()
    _usage()
    _limits()


def _accounts() -> None:
    create(
        "service_account",
        "id",
        *ids("id project_id"),
        *strings("name"),
        *words("role"),
        *floats("created_at", "deleted_at"),
        sa.Index("ix_service_account_project", "project_id", "created_at", "id"),
    )
    create(
        "account",
        "id",
        *ids("id"),
        *strings("email", "name issuer subject"),
        *floats("created_at", "last_login_at deleted_at"),
        sa.Index("ix_account_created", "created_at", "id"),
        sa.Index("ix_account_email", "email"),
        sa.Index("uq_account_identity", "issuer", "subject", unique=True, **where("deleted_at IS NULL")),
    )
    create(
        "invite",
        "id",
        *ids("id"),
        *strings("email"),
        *words("role"),
        *json("", "projects"),
        *floats("created_at expires_at", "accepted_at"),
        sa.Index("ix_invite_created", "created_at", "id"),
        sa.Index("ix_invite_email", "email"),
    )
    create(
        "sign_in_token",
        "id",
        *ids("id account_id"),
        *floats("expires_at"),
        sa.Index("ix_sign_in_token_account_id", "account_id"),
        sa.Index("ix_sign_in_token_expires_at", "expires_at"),
    )
    create(
        "user_group",
        "id",
        *ids("id"),
        *strings("name", "claim"),
        *floats("created_at"),
        sa.UniqueConstraint("claim", name="uq_user_group_claim"),
        sa.Index("ix_user_group_created", "created_at", "id"),
    )
    create(
        "group_member",
        "group_id account_id",
        *ids("group_id account_id"),
        *floats("created_at"),
        sa.Index("ix_group_member_account_id", "account_id"),
    )
    create(
        "role",
        "id",
        *ids("id project_id"),
        *strings("name"),
        *columns(sa.Text(), "", "description"),
        *json("permissions"),
        *floats("created_at updated_at"),
        sa.Index("uq_role_name", "project_id", "name", unique=True),
    )
    create(
        "role_assignment",
        "project_id principal_id role_id",
        *ids("project_id principal_id role_id"),
        *floats("created_at"),
        *columns(sa.String(96), "", "created_by"),
        sa.Index("ix_role_assignment_principal", "principal_id"),
        sa.Index("ix_role_assignment_role", "role_id"),
    )


def _usage() -> None:
    create(
        "usage_minute",
        "minute project_id key_id model endpoint batch tier subject",
        *integers("minute requests"),
        *ids("project_id endpoint subject"),
        *words("key_id tier"),
        *strings("model"),
        *columns(sa.Boolean(), "batch"),
        *integers(TOKENS, "cost"),
        *floats("device_seconds"),
        sa.Index("ix_usage_minute_project", "project_id", "minute"),
    )
    create("usage_change", "id", sa.Column("id", SERIAL, autoincrement=True), *json("rows"), sqlite_autoincrement=True)
    create("stored_bytes_day", "day project_id", *integers("day bytes"), *ids("project_id"))
    create(
        "price",
        "model kind since",
        *strings("model"),
        *words("kind"),
        *integers("since"),
        *floats("usd_per_million created_at"),
    )
    create("spend", "project_id month", *ids("project_id"), *integers("month amount"))


def _limits() -> None:
    create(
        "reservation",
        "id",
        *columns(sa.String(96), "id"),
        *ids("project_id"),
        *integers("amount"),
        *floats("expires_at"),
        sa.Index("ix_reservation_project_id", "project_id"),
        sa.Index("ix_reservation_expires_at", "expires_at"),
    )
    create("spend_limit", "project_id", *ids("project_id"), *integers("cents"), *floats("updated_at"))
    create(
        "spend_alert",
        "id",
        *ids("id project_id"),
        *integers("cents", "fired_month"),
        *json("recipients"),
        *strings("", "subject_prefix"),
        *floats("created_at"),
        sa.Index("ix_spend_alert_project", "project_id", "created_at", "id"),
    )
    create(
        "rate_limit",
        "project_id model",
        *ids("project_id"),
        *strings("model"),
        *integers("", "requests_per_minute tokens_per_minute requests_per_day enqueued_tokens"),
        *floats("updated_at"),
    )
    create(
        "model_permission", "project_id", *ids("project_id"), *words("mode"), *json("model_ids"), *floats("updated_at")
    )
