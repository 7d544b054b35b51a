"""Every setting, once. Each field is also `NIGHTMILL_<FIELD>` in the environment, or a file: `NIGHTMILL_<FIELD>_FILE`.

`settings()` is called by composition roots only (`api.app`, `workers.__main__`, `cli`); everything else is
handed what it needs. A name of the environment that begins with `NIGHTMILL_` and is no setting is an error: a setting
that is misspelt would otherwise have no effect, and nobody would know.
"""

import base64
import difflib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

from pydantic import ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from jobs.platform.secret_files import SUFFIX, secret
from jobs.renamed_settings import FIXED, RENAMED
from jobs.requests.endpoints import validate_server_url
from jobs.setting_groups import (
    ApiSettings,
    BatchSettings,
    CacheSettings,
    EngineSettings,
    InteractiveSettings,
    JobSettings,
    MediaSettings,
    OidcSettings,
    ProjectSettings,
    RetentionSettings,
    ServiceSettings,
    SourceSettings,
    StoreSettings,
    TrainingSettings,
    WebhookSettings,
)

PREFIX: Final = "NIGHTMILL_"
#: Names of the environment that are no settings of a deployment: commands and tests read them.
OTHER_NAMES: Final = frozenset(
    PREFIX + name
    for name in ("API_KEY", "IMPORT_KEY", "ADMIN_KEY", "IDEMPOTENCY_KEY", "SUPERVISED", "URL", "WEBHOOK_SECRET")
)
OTHER_PREFIX: Final = f"{PREFIX}TEST_"


class InvalidSettings(Exception):
    """Settings of the environment or of the caller are wrong. The message names each variable, and no value."""


class SecretFiles(PydanticBaseSettingsSource):
    """Read any setting from a file. `NIGHTMILL_MODELS_FILE` is a setting of its own and names none."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 (theirs)
        name = f"{self.config['env_prefix']}{field_name}".upper()
        if f"{field_name}_file" in self.settings_cls.model_fields or not os.environ.get(name + SUFFIX):
            return None, field_name, False
        return secret(name), field_name, False

    def __call__(self) -> dict[str, Any]:
        fields = self.settings_cls.model_fields
        values = {name: self.get_field_value(field, name)[0] for name, field in fields.items()}
        return {name: value for name, value in values.items() if value is not None}


class Settings(
    ServiceSettings,
    ApiSettings,
    OidcSettings,
    EngineSettings,
    InteractiveSettings,
    MediaSettings,
    CacheSettings,
    JobSettings,
    BatchSettings,
    StoreSettings,
    SourceSettings,
    TrainingSettings,
    ProjectSettings,
    RetentionSettings,
    WebhookSettings,
    BaseSettings,
):
    """One frozen value per process; times are seconds and sizes are bytes unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (no .env is read)
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (a folder of secrets; ours are named)
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, SecretFiles(settings_cls), env_settings

    @field_validator("engine_urls", "cors_origins", "source_folders", "source_s3", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("engine_urls")
    @classmethod
    def _servers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(validate_server_url(url, key="set NIGHTMILL_ENGINE_API_KEY") for url in value)

    @field_validator("openlineage_url")
    @classmethod
    def _lineage_server(cls, value: str) -> str:
        return validate_server_url(value, key="set NIGHTMILL_OPENLINEAGE_API_KEY") if value else value

    @field_validator("webhook_retry_seconds", mode="before")
    @classmethod
    def _schedule(cls, value: Any) -> Any:
        return tuple(float(part) for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _rows_outlive_parts(self) -> Self:
        for name in ("job_retention_seconds", "audit_retention_seconds"):
            if 0 < getattr(self, name) < self.retention_seconds:
                raise ValueError(f"{PREFIX}{name.upper()} is 0, or no less than {PREFIX}RETENTION_SECONDS")
        return self

    @model_validator(mode="after")
    def _check_anchor_secret(self) -> Self:
        if self.anchors_by_webhook:
            try:
                key = base64.b64decode(self.audit_anchor_secret.removeprefix("whsec_"), validate=True)
            except ValueError:
                key = b""
            if not self.audit_anchor_secret.startswith("whsec_") or not 24 <= len(key) <= 64:
                raise ValueError("NIGHTMILL_AUDIT_ANCHOR_SECRET must be 'whsec_' and the base64 of 24 to 64 bytes")
        return self

    @field_validator("audit_key")
    @classmethod
    def _long(cls, value: str) -> str:
        if value and len(value) < 32:
            raise ValueError("NIGHTMILL_AUDIT_KEY must have at least 32 characters")
        return value

    @model_validator(mode="after")
    def _issuer_has_a_client(self) -> Self:
        if self.oidc_issuer and not self.oidc_client_id:
            raise ValueError("NIGHTMILL_OIDC_ISSUER needs NIGHTMILL_OIDC_CLIENT_ID")
        return self

    @model_validator(mode="after")
    def _wandb_has_a_key(self) -> Self:
        if self.wandb_mode == "online" and not self.wandb_api_key:
            raise ValueError("NIGHTMILL_WANDB_MODE=online needs NIGHTMILL_WANDB_API_KEY")
        return self

    @property
    def anchors_by_webhook(self) -> bool:
        """Return whether the heads of the audit log go to a URL, and not to a file."""
        return self.audit_anchor.startswith(("https://", "http://"))

    @property
    def database(self) -> str:
        """Return the database URL in force."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'nightmill.db'}"

    @property
    def storage(self) -> str:
        """Return the storage URL in force."""
        return self.storage_url or f"file://{self.data_dir.absolute() / 'files'}"

    @property
    def own_folders(self) -> tuple[Path, ...]:
        """Return the folders of this machine that hold keys and the files of every project."""
        storage = self.storage
        return (
            (self.data_dir, Path(storage.removeprefix("file://")))
            if storage.startswith("file://")
            else (self.data_dir,)
        )

    @property
    def heartbeat_seconds(self) -> float:
        """Return the time between two heartbeats of a worker: a claim survives five that are lost."""
        return self.lease_seconds / 6

    @property
    def flower(self) -> int:
        return self.flower_port or self.port + 1

    @property
    def flower_url(self) -> str:
        """Return where browsers reach Flower, without a trailing slash."""
        return self.flower_public_url.rstrip("/") or f"http://{self.flower_host}:{self.flower}"

    @property
    def url(self) -> str:
        """Return where clients reach the API, without a trailing slash."""
        return self.public_url.rstrip("/") or f"http://{self.host}:{self.port}"


def read(environment: Mapping[str, str] = os.environ, **given: Any) -> Settings:
    """Return the settings that are `given`, else those of the environment, else their defaults.

    Raises: InvalidSettings.
    """
    if wrong := wrong_names(environment):
        raise InvalidSettings("; ".join(wrong))
    try:
        return Settings(**given)
    except ValidationError as error:
        reasons = [
            f"{_variable(detail['loc'])}: {detail['msg'].removeprefix('Value error, ')}" for detail in error.errors()
        ]
        raise InvalidSettings("; ".join(reasons)) from error
    except SettingsError as error:  # a setting that is read from a file
        raise InvalidSettings(str(error)) from error


def wrong_names(environment: Mapping[str, str]) -> list[str]:
    """Return a sentence for each name of an environment that looks like a setting and is none."""
    settings_ = {PREFIX + name.upper() for name in Settings.model_fields}
    known = settings_ | {name + SUFFIX for name in settings_} | OTHER_NAMES
    asked = sorted(name for name in environment if name.startswith(PREFIX) and not name.startswith(OTHER_PREFIX))
    return [_advice(name, settings_) for name in asked if name not in known]


def _advice(name: str, known: set[str]) -> str:
    bare = name.removeprefix(PREFIX)
    if new := RENAMED.get(bare.removesuffix(SUFFIX)):
        return f"{name} is now {PREFIX}{new}{SUFFIX if bare.endswith(SUFFIX) else ''}"
    if value := FIXED.get(bare.removesuffix(SUFFIX)):
        return f"{name} is not a setting any more: its value is fixed, {value}"
    nearest = difflib.get_close_matches(name, sorted(known), n=1)
    return f"{name} is not a setting" + (f": did you mean {nearest[0]}?" if nearest else "")


def _variable(location: tuple[int | str, ...]) -> str:
    return f"{PREFIX}{str(location[0]).upper()}" if location else "settings"


@cache
def settings() -> Settings:
    """Return the settings of this process, read once from the environment; end a process whose settings are wrong."""
    try:
        return read()
    except InvalidSettings as error:
        raise SystemExit(f"nightmill: {error}") from None
