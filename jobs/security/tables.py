"""Tables of the organization: projects, keys, accounts, groups, roles; stored bytes; answers for an `Idempotency-Key`.

    account ──member──▶ group          role ──assigned to──▶ account, group   on the organization or on one project
    api_key ──owned by──▶ account or service_account

What holds for the whole organization has an empty string in place of a project's id.
"""

from typing import Any, Final

from sqlalchemy import Index, String, Text, false, text
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base

#: `project_id` of an admin key, and of what holds for the whole organization: no row of any project has it.
NO_PROJECT: Final = ""


class Project(Base):
    """The owner of all other rows. `weight` is its share of the workers relative to other projects.

    No two projects that are not archived have one name. `limits` holds what is allowed to this project in place of the
    deployment's settings, `service_tiers` the tiers that its requests may name (null: none but the standard one),
    `hosted_tools` which of the tools they may use (null: all that are here), and `retention` what is kept of its
    requests (null: as for the organization).
    """

    __tablename__ = "project"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str]
    weight: Mapped[float] = mapped_column(default=1.0)
    allow_external: Mapped[bool] = mapped_column(default=False)
    allow_media_urls: Mapped[bool] = mapped_column(default=False, server_default=false())
    limits: Mapped[dict[str, Any] | None]
    service_tiers: Mapped[dict[str, Any] | None]
    hosted_tools: Mapped[dict[str, Any] | None]
    retention: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[float]
    archived_at: Mapped[float | None]

    __table_args__ = (
        Index(
            "uq_project_live_name",
            "name",
            unique=True,
            sqlite_where=text("archived_at IS NULL"),
            postgresql_where=text("archived_at IS NULL"),
        ),
    )


class StorageUsage(Base):
    """The bytes that a project stores: `counted` + `added`. See `jobs.usage.stored_bytes`."""

    __tablename__ = "storage_usage"

    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    added: Mapped[int] = mapped_column(default=0)
    counted: Mapped[int] = mapped_column(default=0)
    counted_at: Mapped[float]


class ApiKey(Base):
    """A key, stored as the SHA-256 of its secret; `id` is the part of the key that finds the row.

    An admin key (`is_admin`) administers the organization and steers the deployment. It belongs to no project: its
    `project_id` is empty. A key that manages keys creates keys of its project and revokes them. `created_by` is the key
    that created this one; null: the command. `owner_id` is an account or a service account, `scopes` the permissions
    that the key is narrowed to (null or empty: all of its owner), `hint` its last characters.
    """

    __tablename__ = "api_key"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64), index=True)
    digest: Mapped[str] = mapped_column(String(64))
    is_admin: Mapped[bool] = mapped_column("operator", default=False, server_default=false())
    manages_keys: Mapped[bool] = mapped_column(default=False, server_default=false())
    name: Mapped[str | None]
    hint: Mapped[str | None] = mapped_column(String(8))
    owner_id: Mapped[str | None] = mapped_column(String(64), index=True)
    scopes: Mapped[list[Any] | None]
    created_by: Mapped[str | None] = mapped_column(String(16), index=True)
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    last_used_at: Mapped[float | None]
    revoked_at: Mapped[float | None]


class ServiceAccount(Base):
    """The owner of keys of one project that is no person. `role` is `owner` or `member` of the project."""

    __tablename__ = "service_account"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    name: Mapped[str]
    role: Mapped[str] = mapped_column(String(16), default="member")
    created_at: Mapped[float]
    deleted_at: Mapped[float | None]

    __table_args__ = (Index("ix_service_account_project", "project_id", "created_at", "id"),)


class Account(Base):
    """A person. The OIDC identity (`issuer`, `subject`) is bound at the first login, and never changes.

    `email` is in lower case, as its provider has verified it.
    """

    __tablename__ = "account"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    email: Mapped[str] = mapped_column(index=True)
    name: Mapped[str | None]
    issuer: Mapped[str | None]
    subject: Mapped[str | None]
    created_at: Mapped[float]
    last_login_at: Mapped[float | None]
    deleted_at: Mapped[float | None]

    __table_args__ = (
        Index("ix_account_created", "created_at", "id"),
        Index(
            "uq_account_identity",
            "issuer",
            "subject",
            unique=True,
            sqlite_where=text("deleted_at IS NULL"),
            postgresql_where=text("deleted_at IS NULL"),
        ),
    )


class Invite(Base):
    """The permission for an address to become an account at its first login. `projects` lists `{id, role}`.

    An address has at most one invite that was not accepted.
    """

    __tablename__ = "invite"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    email: Mapped[str] = mapped_column(index=True)
    role: Mapped[str] = mapped_column(String(16))
    projects: Mapped[list[Any] | None]
    created_at: Mapped[float]
    expires_at: Mapped[float]
    accepted_at: Mapped[float | None]

    __table_args__ = (
        Index("ix_invite_created", "created_at", "id"),
        Index(
            "uq_invite_pending_email",
            "email",
            unique=True,
            sqlite_where=text("accepted_at IS NULL"),
            postgresql_where=text("accepted_at IS NULL"),
        ),
    )


class SignInToken(Base):
    """The proof of a login, by which the browser gets its keys once. `id` is the SHA-256 of the token."""

    __tablename__ = "sign_in_token"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    account_id: Mapped[str] = mapped_column(String(64), index=True)
    expires_at: Mapped[float] = mapped_column(index=True)


class AccountGroup(Base):
    """Accounts that get roles together. `claim` is the value of the OIDC groups claim that fills it."""

    __tablename__ = "user_group"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str]
    claim: Mapped[str | None] = mapped_column(unique=True)
    created_at: Mapped[float]

    __table_args__ = (Index("ix_user_group_created", "created_at", "id"),)


class GroupMember(Base):
    """An account in a group."""

    __tablename__ = "group_member"

    group_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    account_id: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)
    created_at: Mapped[float]


class Role(Base):
    """A custom role: a named list of permissions. Those of the organization have an empty `project_id`.

    The predefined ones are constants: `jobs.security.permissions`.
    """

    __tablename__ = "role"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64), default="")
    name: Mapped[str]
    description: Mapped[str | None] = mapped_column(Text)
    permissions: Mapped[list[Any]]
    created_at: Mapped[float]
    updated_at: Mapped[float]

    __table_args__ = (Index("uq_role_name", "project_id", "name", unique=True),)


class RoleAssignment(Base):
    """A role of an account or a group (`principal_id`) on the organization (an empty `project_id`) or on a project."""

    __tablename__ = "role_assignment"

    project_id: Mapped[str] = mapped_column(String(64), primary_key=True, default="")
    principal_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    role_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[float]
    created_by: Mapped[str | None] = mapped_column(String(96))

    __table_args__ = (
        Index("ix_role_assignment_principal", "principal_id"),
        Index("ix_role_assignment_role", "role_id"),
    )


class ModelPermission(Base):
    """The models that a project may or may not use: `mode` is `allow_list` or `deny_list`. No row: all of them."""

    __tablename__ = "model_permission"

    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    mode: Mapped[str] = mapped_column(String(16))
    model_ids: Mapped[list[Any]]
    updated_at: Mapped[float]


class Idempotency(Base):
    """The first answer to a create, replayed for the same key and request. `status` 0: still being made.

    Until then the row is leased: `heartbeat_at` is renewed while bytes arrive.
    """

    __tablename__ = "idempotency"

    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    route: Mapped[str] = mapped_column(String(128), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    digest: Mapped[str | None] = mapped_column(String(64))
    status: Mapped[int] = mapped_column(default=0)
    body: Mapped[str | None] = mapped_column(Text)
    owner: Mapped[str | None] = mapped_column(String(64))
    heartbeat_at: Mapped[float]
    created_at: Mapped[float]

    __table_args__ = (Index("ix_idempotency_created", "created_at"),)
