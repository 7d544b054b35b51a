"""The settings by subject. The docstring of a group is its heading in the reference; `Settings` has them in order.

Times are seconds and sizes are bytes unless the name says otherwise.
"""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field
from pydantic_settings import NoDecode

DAY: Final = 86_400
MB: Final = 1 << 20


class ServiceSettings(BaseModel):
    """Data and services"""

    data_dir: Path = Field(
        Path(".nightmill"),
        description="Everything embedded lies in this folder: the database, files, vectors, logs and keys.",
    )
    database_url: str = Field(
        "",
        repr=False,
        description="All processes use the database with this SQLAlchemy URL. Empty: SQLite in the data folder.",
    )
    broker_url: str = Field(
        "",
        repr=False,
        description="Celery's messages go through the broker with this URL. Empty: the Unix socket of the embedded "
        "Valkey.",
    )
    streams_url: str = Field(
        "",
        repr=False,
        description="Interactive requests go through the Redis or Valkey server with this URL. Empty: the broker, if "
        "it is one.",
    )
    storage_url: str = Field(
        "", description="Files are stored under this fsspec URL, such as `s3://bucket/prefix`. Empty: the data folder."
    )
    models_file: str = Field(
        "",
        description="Models are read from the file with this path. Empty: `models.yaml` of the data folder, else the "
        "packaged one.",
    )
    min_free_bytes: int = Field(
        1024 * MB,
        ge=0,
        description="Uploads answer 507 and jobs wait while the disk has fewer free bytes than this.",
    )


class ApiSettings(BaseModel):
    """The API and its logs"""

    host: str = Field("127.0.0.1", description="The API listens on this address.")
    port: int = Field(
        8000, ge=0, le=65_535, description="The API listens on this port. 0: `nightmill up` takes a free one."
    )
    flower_host: str = Field("127.0.0.1", description="Flower listens on this address.")
    flower_port: int = Field(
        0, ge=0, le=65_535, description="Flower listens on this port. 0: the port after the API's."
    )
    public_url: str = Field(
        "", description="Links that clients get begin with this URL of the API. Empty: `http://host:port`."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Pages of these origins, separated by commas, may call the API from a browser. `*`: those of any "
        "origin.",
    )
    metrics_key: str = Field(
        "", repr=False, description="The API answers `/metrics` to this bearer key. Empty: it answers this host alone."
    )
    wrong_keys_per_minute: int = Field(
        600, ge=1, description="An address that sends more requests with a wrong key in a minute than this gets 429."
    )
    body_max_bytes: int = Field(
        4 * MB, ge=1024, description="A JSON request body of more bytes than this is refused with 413."
    )
    idempotency_seconds: int = Field(
        7 * DAY,
        ge=1,
        description="The answer under an `Idempotency-Key` is repeated for this many seconds, and then removed.",
    )
    shutdown_seconds: float = Field(
        20,
        ge=0,
        le=DAY,
        description="A process that is told to stop has this many seconds to finish its answers; then it ends them.",
    )
    shutdown_notice_seconds: float = Field(
        0,
        ge=0,
        le=3600,
        description="During the first seconds of `NIGHTMILL_SHUTDOWN_SECONDS`, as many as this, the API accepts "
        "requests while `/readyz` fails, so that a load balancer can notice.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Lines of at least this level are logged: `DEBUG`, `INFO`, `WARNING` or `ERROR`."
    )
    access_log: bool = Field(
        True, description="The API logs a line of level INFO for each request, unless this is false."
    )


class OidcSettings(BaseModel):
    """Login by OpenID Connect"""

    oidc_issuer: str = Field(
        "",
        description="People log in at the identity provider with this issuer URL. Empty: nobody can log in, and the "
        "console takes keys and one-time links alone.",
    )
    oidc_client_id: str = Field("", description="The identity provider knows this deployment by this client id.")
    oidc_client_secret: str = Field(
        "", repr=False, description="The identity provider gets this client secret. Empty: a public client."
    )
    oidc_scopes: str = Field("openid email profile", description="A login asks for these scopes, separated by spaces.")
    oidc_audience: str = Field(
        "", description="ID tokens must be for this audience. Empty: for `NIGHTMILL_OIDC_CLIENT_ID`."
    )
    oidc_groups_claim: str = Field(
        "groups", description="This claim of ID tokens lists the groups of a person, which fill groups with a `claim`."
    )
    oidc_trust_emails: bool = Field(
        False,
        description="If true, an ID token without `email_verified` has a verified address: only for a provider whose "
        "users cannot choose their addresses.",
    )
    flower_public_url: str = Field(
        "",
        description="A login to Flower comes back to `/login` of this URL. Empty: `http://host:port` of Flower.",
    )
    oidc_allow_private: bool = Field(
        False, description="If true, URLs of the identity provider may have private addresses, plain http and any port."
    )


class EngineSettings(BaseModel):
    """Engines"""

    vllm_enabled: bool = Field(True, description="Workers run the models of engine `vllm`, unless this is false.")
    openai_aliases: bool = Field(
        False,
        description="If true, OpenAI's model names are aliases of the first model that serves their endpoint.",
    )
    engine_urls: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Workers send requests to the OpenAI-compatible servers with these base URLs, separated by commas.",
    )
    engine_api_key: str = Field(
        "", repr=False, description="Workers send this bearer key to the servers of `NIGHTMILL_ENGINE_URLS`."
    )
    engine_timeout_seconds: float = Field(
        600,
        gt=0,
        description="A request to a server fails when an answer, or the next event of a stream, takes more seconds "
        "than this.",
    )
    engine_concurrency: int = Field(
        256, ge=1, description="A worker has at most this many requests in flight at one server; others wait."
    )
    refuse_text_images: bool = Field(
        False,
        description="If true, prompts for servers are refused if their text has a Markdown image with an http(s) URL.",
    )
    engine_silence_seconds: float = Field(
        300,
        gt=0,
        description="A vLLM engine that gives neither an answer nor progress for this many seconds is killed and built"
        " again.",
    )
    engine_deaths: int = Field(
        10, ge=2, description="An engine that dies this many times on its devices is quarantined."
    )
    engine_deaths_seconds: float = Field(
        900,
        gt=0,
        description="Deaths of an engine count for this many seconds. Those since it last came up always count.",
    )
    engine_rest_seconds: float = Field(
        900,
        gt=0,
        description="A quarantined engine is tried again after this many seconds, which double with each failure, up "
        "to a day.",
    )
    embedding_floor: float = Field(
        0.999,
        ge=0.9,
        le=1,
        description="A faster embedding runtime is taken only if the mean cosine of its vectors to those of torch in "
        "float32 is at least this. 1: only torch is used.",
    )


class InteractiveSettings(BaseModel):
    """Interactive requests"""

    interactive_seconds: float = Field(
        600, gt=0, description="An interactive request that is not answered within this many seconds fails with 408."
    )
    interactive_waiting: int = Field(
        256,
        ge=1,
        description="So many requests may wait in one queue, and of a project in one worker; others get 503. A project"
        " may have a third of a queue.",
    )
    interactive_resumable: int = Field(
        8,
        ge=1,
        description="A project may have this many unfinished streams with `X-Nightmill-Resume`; another gets 429.",
    )
    batch_requests_while_interactive: int = Field(
        0,
        ge=0,
        description="A vLLM engine runs at most this many lines of batches while an interactive client waits. 0: 4 on "
        "a CPU, all on a GPU.",
    )
    response_seconds: int = Field(
        30 * DAY, ge=60, description="A response or chat completion with `store` is removed after this many seconds."
    )


class MediaSettings(BaseModel):
    """Pictures and files by URL"""

    media_max_bytes: int = Field(
        16 * MB,
        ge=1024,
        description="A request is refused with 400 if the pictures and files that it names by URL have more bytes "
        "together than this. A project needs `--allow-media-urls`.",
    )
    media_allow_private: bool = Field(
        False, description="If true, URLs of pictures and files may have private addresses, plain http and any port."
    )


class CacheSettings(BaseModel):
    """The cache"""

    embedding_cache_seconds: int = Field(
        7 * DAY,
        ge=0,
        description="An embedding is removed from the cache when it was not used for this many seconds. 0: none is "
        "cached.",
    )
    response_cache_seconds: int = Field(
        DAY,
        ge=0,
        description="A cached answer is used for this many seconds at most, even if its `ttl` is larger. 0: none is "
        "cached.",
    )
    cache_max_bytes: int = Field(
        256 * MB,
        ge=MB,
        description="When all cached embeddings and answers have more bytes than this, those that expire first are "
        "removed.",
    )


class JobSettings(BaseModel):
    """Jobs and workers"""

    shard_lines: int = Field(
        256, ge=1, le=4096, description="A batch is cut into shards of at most this many lines, each run by one worker."
    )
    segment_seconds: float = Field(
        1.0,
        gt=0,
        description="A worker stores its finished lines at intervals of this many seconds. Lines that it has not "
        "stored when it dies are run again.",
    )
    lease_seconds: float = Field(
        30,
        gt=0,
        description="The claim of a worker without a heartbeat for this many seconds is revoked, and other workers "
        "take its work. Six heartbeats are sent in this time.",
    )
    redelivery_seconds: float = Field(
        10,
        gt=0,
        description="A message that no worker has claimed is published again after this many seconds, which double "
        "with each repetition.",
    )


class BatchSettings(BaseModel):
    """Batches and files"""

    batch_max_lines: int = Field(
        50_000,
        ge=1,
        description="A batch with more lines or embedding inputs than this fails, and an eval run with more samples.",
    )
    batch_max_bytes: int = Field(
        200 * MB,
        ge=1,
        description="A batch whose input file has more bytes than this fails, and an eval run over such a file is "
        "refused.",
    )
    window_max_seconds: int = Field(
        30 * DAY,
        ge=1,
        description="A batch is refused if its completion window has more seconds than this, or if it is to begin "
        "later than that.",
    )
    file_max_bytes: int = Field(
        512 * MB,
        ge=1,
        description="A file of more bytes than this is refused if it is uploaded in one request, and fails if it comes"
        " from a source.",
    )
    file_expiry_batch_seconds: int = Field(
        30 * DAY,
        ge=1,
        description="The input and output files of batches are removed after this many seconds, unless a request says "
        "otherwise.",
    )


class StoreSettings(BaseModel):
    """Vector stores"""

    vectors_url: str = Field(
        "",
        description="Vectors are stored in the database with this URL, `weaviate://host:port`. Empty: LanceDB in the "
        "data folder.",
    )
    vectors_api_key: str = Field(
        "", repr=False, description="Workers and the API send this key to the server of `NIGHTMILL_VECTORS_URL`."
    )
    embedding_model: str = Field(
        "",
        description="A vector store that names no embedding model has this one. Empty: the first in the models file.",
    )
    rewrite_model: str = Field(
        "", description="This chat model rewrites queries with `rewrite_query`. Empty: queries stay as they are."
    )
    parse_seconds: float = Field(
        120, gt=0, description="A document whose parsing takes more seconds than this, of time or of CPU, fails."
    )


class SourceSettings(BaseModel):
    """Sources of vector stores"""

    source_folders: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Any project may use the files of these folders, separated by commas, as a source.",
    )
    source_s3: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Any project may use the objects under these prefixes `s3://bucket/prefix`, separated by commas, "
        "as a source. The credentials are those that boto finds.",
    )
    source_allow_private: bool = Field(
        False, description="If true, URLs of sources may have private addresses, plain http and any port."
    )
    source_max_items: int = Field(10_000, ge=1, description="A sync of a source with more files than this fails.")
    source_seconds: float = Field(
        3600,
        gt=0,
        description="A sync that reads the files of its source for more seconds than this stops reading, and removes "
        "nothing.",
    )


class TrainingSettings(BaseModel):
    """Fine-tuning and evaluations"""

    finetune_exclusive_device: bool = Field(
        False,
        description="If true, the engines of `gpu` and `tuned` on a device are closed while a training runs on it.",
    )
    finetune_max_seconds: int = Field(
        DAY,
        ge=0,
        description="A fine-tuning job that has trained for this many seconds, pauses left out, fails with "
        "`time_limit`. 0: no limit.",
    )
    mlflow_url: str = Field(
        "",
        description="MLflow's server with this URL gets the steps of every training, and its registry the versions of "
        "tuned models with their stages. Empty: none.",
    )
    mlflow_token: str = Field("", repr=False, description="MLflow's server gets this bearer token, or `user:password`.")
    wandb_mode: Literal["off", "offline", "online"] = Field(
        "off",
        description="`integrations` with Weights & Biases are refused with `off`, kept as files in the storage with "
        "`offline`, and sent with `online`.",
    )
    wandb_api_key: str = Field("", repr=False, description="Weights & Biases gets this key with `online`.")
    wandb_url: str = Field(
        "", description="Runs are sent to your own server of Weights & Biases with this URL. Empty: the public one."
    )
    wordnet: str = Field(
        "",
        description="The metric `meteor` reads WordNet from this folder. Empty: that of Debian's package wordnet-base.",
    )


class ProjectSettings(BaseModel):
    """Limits of each project"""

    project_max_bytes: int = Field(
        0,
        ge=0,
        description="A project that stores more bytes than this (files, vectors, responses, chats and checkpoints) "
        "gets 507. 0: no limit.",
    )
    project_max_queued_tokens: int = Field(
        0,
        ge=0,
        description="A batch fails if the waiting lines of its project have more estimated tokens than this. 0: no "
        "limit.",
    )
    project_finetune_jobs: int = Field(
        20, ge=1, description="A project may have this many fine-tuning jobs in progress; another is refused."
    )
    project_eval_runs: int = Field(
        100, ge=1, description="A project may have this many eval runs in progress; another is refused."
    )
    project_threads: int = Field(
        10,
        ge=1,
        le=40,
        description="A project uses at most this many of an API process's 40 threads at once; a request that waits too"
        " long gets 429.",
    )
    project_body_bytes: int = Field(
        64 * MB,
        ge=1024,
        description="The JSON bodies of a project's requests in progress, with what they continue, may have this many "
        "bytes; another request gets 429. The responses that its WebSockets cache may have as many again.",
    )
    project_streams: int = Field(
        64,
        ge=1,
        description="A project may have this many streams, downloads and WebSockets at one API process; another gets "
        "429.",
    )


class RetentionSettings(BaseModel):
    """Retention and the audit log"""

    retention_seconds: int = Field(
        30 * DAY,
        ge=1,
        description="Segments (retries need them), events, deliveries and their attempts are removed after this many "
        "seconds.",
    )
    job_retention_seconds: int = Field(
        0,
        ge=0,
        description="Ended jobs are removed after this many seconds, at least `NIGHTMILL_RETENTION_SECONDS`. 0: never.",
    )
    audit_retention_seconds: int = Field(
        0,
        ge=0,
        description="Audit rows are removed after this many seconds, at least `NIGHTMILL_RETENTION_SECONDS`. 0: never.",
    )
    audit_key: str = Field(
        "",
        repr=False,
        description="This key of at least 32 characters, the same on every host, signs the audit log. Empty: "
        "`audit.key` of the data folder.",
    )
    audit_anchor: str = Field(
        "",
        description="The head of the audit log is sent to this place once a day: a file, or the `https://` URL of a "
        "signed webhook. Empty: none.",
    )
    audit_anchor_secret: str = Field(
        "", repr=False, description="This secret, `whsec_` and base64, signs the head of the audit log for a URL."
    )


class WebhookSettings(BaseModel):
    """Webhooks and lineage"""

    webhook_allow_private: bool = Field(
        False, description="If true, URLs of webhooks may have private addresses, plain http and any port."
    )
    webhook_retry_seconds: Annotated[tuple[float, ...], NoDecode] = Field(
        (0, 5, 30, 120, 600, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400),
        description="Each attempt at a delivery is made after the next of these delays in seconds, separated by "
        "commas. After the last attempt the delivery has failed.",
    )
    webhook_timeout_seconds: float = Field(
        15, gt=0, description="An attempt at a delivery fails when it takes more seconds than this."
    )
    openlineage_url: str = Field(
        "",
        description="The beginning and the end of each job, with what it reads and writes, are sent to "
        "`/api/v1/lineage` of the server with this URL. Empty: none.",
    )
    openlineage_api_key: str = Field("", repr=False, description="The server of OpenLineage gets this bearer token.")
