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
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from jobs.platform.secret_files import SUFFIX, secret
from jobs.renamed_settings import FIXED, RENAMED
from jobs.requests.endpoints import checked_server

DAY = 86_400
MB = 1 << 20

PREFIX: Final = "NIGHTMILL_"
#: Names of the environment that are no settings of a deployment: commands and tests read them.
OTHER_NAMES: Final = frozenset(
    PREFIX + name for name in ("API_KEY", "IMPORT_KEY", "OPERATOR_KEY", "SUPERVISED", "URL", "WEBHOOK_SECRET")
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


class Settings(BaseSettings):
    """One frozen value per process; times are seconds and sizes are bytes unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True)

    data_dir: Path = Field(Path(".nightmill"), description="folder of everything embedded: database, files, logs, keys")
    database_url: str = Field("", repr=False, description="SQLAlchemy URL; empty: SQLite in the data folder")
    broker_url: str = Field("", repr=False, description="Celery broker; empty: the embedded Valkey's Unix socket")
    streams_url: str = Field("", repr=False, description="Redis for interactive clients; empty: the broker, if Redis")
    storage_url: str = Field("", description="fsspec URL (`s3://bucket/prefix`); empty: the data folder")
    models_file: str = Field("", description="path of a models.yaml; empty: the data folder's, else the packaged")

    host: str = Field("127.0.0.1", description="address the API binds")
    port: int = Field(8000, ge=0, le=65_535, description="port of the API")
    flower_host: str = Field("127.0.0.1", description="address Flower binds")
    flower_port: int = Field(0, ge=0, le=65_535, description="port of Flower; 0: the API's port + 1")
    public_url: str = Field("", description="URL that clients use, for links; empty: http://host:port")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="origins whose pages may call the API from a browser, comma-separated; `*`: any"
    )
    metrics_key: str = Field("", repr=False, description="bearer key for `/metrics` of the API; empty: this host only")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")
    access_log: bool = Field(True, description="log a line for each request to the API, at the level INFO")

    vllm_enabled: bool = Field(True, description="serve the models of engine `vllm` in process")
    openai_aliases: bool = Field(
        False, description="make OpenAI's model names aliases of the first model that serves their endpoint"
    )
    engine_urls: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="OpenAI-compatible base URLs, comma-separated"
    )
    engine_api_key: str = Field("", repr=False, description="bearer key sent to `engine_urls`")
    engine_timeout_seconds: float = Field(600, gt=0, description="one request to an engine, or one event of a stream")
    engine_concurrency: int = Field(256, ge=1, description="requests in flight per endpoint, at most")
    refuse_text_images: bool = Field(
        False, description="refuse prompts for servers whose text has a Markdown image of an http(s) URL"
    )
    item_tries: int = Field(3, ge=1, le=8, description="tries of an item whose request breaks, the last one alone")

    interactive_seconds: float = Field(600, gt=0, description="an interactive client's request, at most")
    interactive_waiting: int = Field(
        256, ge=1, description="interactive clients in one queue, and of a project in one worker, before 503"
    )
    interactive_waiting_bytes: int = Field(
        192 * MB,
        ge=3 * MB,
        description="bytes of requests waiting in one queue; a project has a third of its places, and of these in all",
    )
    shutdown_seconds: float = Field(
        20, ge=0, le=DAY, description="answers in progress of a process that is told to stop, before they are ended"
    )
    shutdown_notice_seconds: float = Field(
        0, ge=0, le=3600, description="of these, requests are still taken: until a load balancer sees `/readyz` fail"
    )
    batch_requests_while_interactive: int = Field(
        0,
        ge=0,
        description="requests of batches at vLLM while an interactive client waits; 0: 4 on a CPU, all on a GPU",
    )
    interactive_unread_bytes: int = Field(
        8 * MB,
        ge=MB,
        description="bytes of a stream in Redis, those that stay to be resumed from included, before it is given up",
    )
    interactive_resumable: int = Field(8, ge=1, description="unfinished streams with X-Nightmill-Resume of a project")

    embedding_cache_seconds: int = Field(
        7 * DAY, ge=0, description="a vector of /v1/embeddings that is not asked for again is kept so long; 0: none is"
    )
    response_cache_seconds: int = Field(
        DAY, ge=0, description="longest `ttl` of an answer that its client lets be given again; 0: none is kept"
    )
    cache_max_bytes: int = Field(256 * MB, ge=MB, description="both together; what would expire first goes first")

    response_seconds: int = Field(30 * DAY, ge=60, description="life of a response or chat that is kept (`store`)")

    shard_lines: int = Field(256, ge=1, le=4096, description="lines of a shard, at most")
    shard_bytes: int = Field(4 * MB, ge=1024, description="bytes of a shard, at most (one line may be longer)")
    shards_in_flight: int = Field(2, ge=1, description="shards one engine works on at once; small ones count by lines")
    finetune_exclusive_device: bool = Field(
        False, description="engines of `gpu` and `tuned` on the device of a training are closed while it runs"
    )
    segment_seconds: float = Field(1.0, gt=0, description="results are durable after this long")
    heartbeat_seconds: float = Field(5, gt=0, description="a worker's heartbeat")
    lease_seconds: float = Field(30, gt=0, description="a claim whose heartbeat stands still this long is taken back")
    redelivery_seconds: float = Field(
        10, gt=0, description="an unclaimed message is published again after this long, then 2x, 4x"
    )
    cancel_grace_seconds: float = Field(
        3, ge=0, description="the claims on a cancelled job's shards are revoked after this long"
    )
    engine_silence_seconds: float = Field(
        300,
        gt=0,
        description="a vLLM engine that is silent for so long, and makes no progress, is built again",
    )
    engine_deaths: int = Field(10, ge=2, description="deaths of an engine on its devices until it is quarantined")
    engine_deaths_seconds: float = Field(900, gt=0, description="that many within this time, or without coming up")
    engine_rest_seconds: float = Field(900, gt=0, description="before it is tried once more; then 2x, 4x, up to a day")
    finish_tries: int = Field(5, ge=1, description="tries to plan or finish a job before it fails")

    vectors_url: str = Field("", description="the vector database: `weaviate://host:port`; empty: LanceDB, on disk")
    vectors_api_key: str = Field("", repr=False, description="key of that server")
    embedding_model: str = Field("", description="model of vector stores that name none; empty: the first there is")
    rewrite_model: str = Field("", description="chat model that `rewrite_query` asks; empty: queries stay as they are")
    rewrite_seconds: float = Field(5, gt=0, description="for that; later the query is searched as it stands")
    wordnet: str = Field("", description="folder of WordNet, for the metric `meteor`; empty: Debian's wordnet-base")
    embedding_floor: float = Field(
        0.999,
        ge=0.9,
        le=1,
        description="mean cosine to torch in float32 that a faster runtime must keep; 1: torch alone",
    )
    media_max_bytes: int = Field(
        16 * MB,
        ge=1024,
        description="pictures and files that one request names by URL, in all; see `--allow-media-urls`",
    )
    media_seconds: float = Field(20, gt=0, description="fetching the pictures and files of one request, at most")
    media_allow_private: bool = Field(False, description="their URLs: private addresses, plain http and any port")
    ingest_shard_files: int = Field(32, ge=1, le=256, description="files of an ingestion's shard, at most")
    parse_seconds: float = Field(120, gt=0, description="reading one document, at most, on the clock and of CPU")
    parse_memory_bytes: int = Field(1024 * MB, ge=64 * MB, description="memory of a process that reads documents")

    source_folders: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="folders whose files may become sources of any project's vector stores, comma-separated",
    )
    source_s3: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="the same of S3, for any project too: `s3://bucket/prefix`, comma-separated; "
        "credentials as boto finds them",
    )
    source_allow_private: bool = Field(False, description="URLs of sources: private addresses, plain http and any port")
    source_max_items: int = Field(10_000, ge=1, description="files of one source")
    source_seconds: float = Field(3600, gt=0, description="one sync of a source until its files are read, at most")
    source_fetch_seconds: float = Field(60, gt=0, description="fetching one URL of a source, at most")

    mlflow_url: str = Field(
        "",
        description="MLflow's tracking server (`http://host:5000`) that gets the steps of every training; empty: none",
    )
    mlflow_token: str = Field("", repr=False, description="its bearer token, or `user:password`")
    wandb_mode: Literal["off", "offline", "online"] = Field(
        "off", description="`integrations` with Weights & Biases: refused, kept as files in the storage, or sent there"
    )
    wandb_api_key: str = Field("", repr=False, description="key of Weights & Biases for `online`")
    wandb_url: str = Field("", description="a server of Weights & Biases of your own; empty: theirs")

    batch_max_lines: int = Field(50_000, ge=1, description="requests of a batch")
    batch_max_bytes: int = Field(200 * MB, ge=1, description="bytes of a batch's input file")
    batch_max_line_bytes: int = Field(32 * MB, ge=1024, description="bytes of one line")
    batch_max_embedding_inputs: int = Field(50_000, ge=1, description="embedding inputs over all lines of a batch")
    project_max_bytes: int = Field(
        0,
        ge=0,
        description="bytes that a project may store: files, vectors, responses, chats, checkpoints; 0: no limit",
    )
    project_finetune_jobs: int = Field(20, ge=1, description="fine-tuning jobs of a project that have not ended")
    project_eval_runs: int = Field(100, ge=1, description="runs of a project's evals that have not ended")
    finetune_max_steps: int = Field(100_000, ge=1, description="steps of a training: each has a row in SQL")
    project_max_queued_tokens: int = Field(0, ge=0, description="estimated tokens waiting per project; 0: no limit")
    project_threads: int = Field(10, ge=1, le=40, description="threads of the API that one project uses at once, of 40")
    project_body_bytes: int = Field(
        64 * MB,
        ge=1024,
        description="JSON bodies of one project's requests in progress, with what they continue; and as much again for "
        "responses that its WebSockets cache",
    )
    project_streams: int = Field(
        64,
        ge=1,
        description="streams of events, of finished lines, downloads, and WebSockets that a project has open at one "
        "API process",
    )
    finetune_max_seconds: int = Field(
        DAY, ge=0, description="training of a fine-tuning job, without pauses, then it fails: `time_limit`; 0: no limit"
    )
    window_min_seconds: int = Field(60, ge=1, description="shortest completion window")
    window_max_seconds: int = Field(30 * DAY, ge=1, description="longest completion window")
    file_max_bytes: int = Field(512 * MB, ge=1, description="one uploaded file")
    body_max_bytes: int = Field(4 * MB, ge=1024, description="a JSON request body")
    file_expiry_batch_seconds: int = Field(30 * DAY, ge=1, description="life of batch input and output files")
    idempotency_seconds: int = Field(7 * DAY, ge=1, description="life of an Idempotency-Key")
    retention_seconds: int = Field(30 * DAY, ge=1, description="segments (retries need them), deliveries, attempt logs")
    job_retention_seconds: int = Field(
        0, ge=0, description="rows of ended jobs, `NIGHTMILL_RETENTION_SECONDS` or more; 0: they stay"
    )
    audit_retention_seconds: int = Field(
        0, ge=0, description="rows of the audit log, `NIGHTMILL_RETENTION_SECONDS` or more; 0: they stay"
    )
    min_free_bytes: int = Field(1024 * MB, ge=0, description="below this, uploads answer 507 and jobs wait")
    audit_key: str = Field(
        "",
        repr=False,
        description="key that signs the audit log, the same on every host, of 32 characters or more; "
        "empty: `audit.key` of the data folder",
    )
    audit_anchor: str = Field(
        "", description="where the audit log's head goes once a day: a file, or the `https://` URL of a signed webhook"
    )
    audit_anchor_secret: str = Field("", repr=False, description="secret that signs it for a URL: `whsec_` and base64")
    wrong_keys_per_minute: int = Field(600, ge=1, description="wrong keys of one address before 429")

    webhook_allow_private: bool = Field(False, description="private addresses, plain http and any port")
    webhook_retry_seconds: Annotated[tuple[float, ...], NoDecode] = Field(
        (0, 5, 30, 120, 600, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400),
        description="delay before each attempt, comma-separated",
    )
    webhook_timeout_seconds: float = Field(15, gt=0, description="one delivery attempt")
    webhook_disable_seconds: float = Field(5 * DAY, gt=0, description="only failures for this long disable an endpoint")

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
        return tuple(checked_server(url, key="set NIGHTMILL_ENGINE_API_KEY") for url in value)

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
    def _anchor_signed(self) -> Self:
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
    def flower(self) -> int:
        return self.flower_port or self.port + 1

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
