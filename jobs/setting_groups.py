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
        description="The folder of everything embedded: the database, files, vectors, logs and keys.",
    )
    database_url: str = Field(
        "", repr=False, description="The SQLAlchemy URL of the database. Empty: SQLite in the data folder."
    )
    broker_url: str = Field(
        "", repr=False, description="The URL of Celery's broker. Empty: the Unix socket of the embedded Valkey."
    )
    streams_url: str = Field(
        "", repr=False, description="The URL of the Redis for interactive requests. Empty: the broker, if it is one."
    )
    storage_url: str = Field(
        "", description="The fsspec URL of the file storage, such as `s3://bucket/prefix`. Empty: the data folder."
    )
    models_file: str = Field(
        "", description="The path of the models file. Empty: `models.yaml` of the data folder, else the packaged."
    )
    min_free_bytes: int = Field(
        1024 * MB,
        ge=0,
        description="The free bytes of the disk below which uploads answer 507 and jobs wait.",
    )


class ApiSettings(BaseModel):
    """The API and its logs"""

    host: str = Field("127.0.0.1", description="The address that the API listens on.")
    port: int = Field(8000, ge=0, le=65_535, description="The port that the API listens on.")
    flower_host: str = Field("127.0.0.1", description="The address that Flower listens on.")
    flower_port: int = Field(
        0, ge=0, le=65_535, description="The port that Flower listens on. 0: the port after the API's."
    )
    public_url: str = Field(
        "", description="The URL under which clients reach the API, for links. Empty: `http://host:port`."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="The origins whose pages may call the API from a browser, separated by commas. `*` allows any.",
    )
    metrics_key: str = Field(
        "", repr=False, description="The bearer key for `/metrics` of the API. Empty: only this host may read it."
    )
    wrong_keys_per_minute: int = Field(
        600, ge=1, description="The requests with a wrong key that an address may send in a minute before it gets 429."
    )
    body_max_bytes: int = Field(4 * MB, ge=1024, description="The maximum size of a JSON request body.")
    idempotency_seconds: int = Field(
        7 * DAY, ge=1, description="The time for which the answer under an `Idempotency-Key` is kept."
    )
    shutdown_seconds: float = Field(
        20,
        ge=0,
        le=DAY,
        description="The time for which a process that is told to stop finishes answers before it ends them.",
    )
    shutdown_notice_seconds: float = Field(
        0,
        ge=0,
        le=3600,
        description="The part of `NIGHTMILL_SHUTDOWN_SECONDS` in which the API accepts requests while `/readyz` fails, "
        "so that a load balancer can notice.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="The lowest level of the lines that are logged: `DEBUG`, `INFO`, `WARNING` or `ERROR`."
    )
    access_log: bool = Field(True, description="Whether the API logs a line of level INFO for each request.")


class EngineSettings(BaseModel):
    """Engines"""

    vllm_enabled: bool = Field(True, description="Whether workers run the models of engine `vllm`.")
    openai_aliases: bool = Field(
        False,
        description="Whether OpenAI's model names are aliases of the first model that serves their endpoint.",
    )
    engine_urls: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="The base URLs of OpenAI-compatible servers, separated by commas."
    )
    engine_api_key: str = Field(
        "", repr=False, description="The bearer key for the servers of `NIGHTMILL_ENGINE_URLS`."
    )
    engine_timeout_seconds: float = Field(
        600, gt=0, description="The maximum time of one request to a server, or of one event of a stream."
    )
    engine_concurrency: int = Field(
        256, ge=1, description="The maximum number of requests that a worker has in flight at one server."
    )
    refuse_text_images: bool = Field(
        False,
        description="Whether prompts for servers are refused if their text has a Markdown image with an http(s) URL.",
    )
    engine_silence_seconds: float = Field(
        300, gt=0, description="The time without an answer or progress after which a vLLM engine is built again."
    )
    engine_deaths: int = Field(
        10, ge=2, description="The deaths of an engine on its devices after which it is quarantined."
    )
    engine_deaths_seconds: float = Field(
        900,
        gt=0,
        description="The time within which deaths of an engine count. Those since it last came up always count.",
    )
    engine_rest_seconds: float = Field(
        900,
        gt=0,
        description="The time until a quarantined engine is tried again. It doubles with each failure, up to a day.",
    )
    embedding_floor: float = Field(
        0.999,
        ge=0.9,
        le=1,
        description="The mean cosine to vectors of torch in float32 that a faster embedding runtime must reach. 1: "
        "only torch is used.",
    )


class InteractiveSettings(BaseModel):
    """Interactive requests"""

    interactive_seconds: float = Field(600, gt=0, description="The maximum time of an interactive request.")
    interactive_waiting: int = Field(
        256,
        ge=1,
        description="The maximum number of requests in one queue, and of a project in one worker. Others get 503. A "
        "project may have a third of a queue.",
    )
    interactive_resumable: int = Field(
        8, ge=1, description="The maximum number of unfinished streams with `X-Nightmill-Resume` of a project."
    )
    batch_requests_while_interactive: int = Field(
        0,
        ge=0,
        description="The maximum number of batch lines that vLLM runs while an interactive client waits. 0: 4 on a "
        "CPU, all on a GPU.",
    )
    response_seconds: int = Field(
        30 * DAY, ge=60, description="The time for which a response or chat completion with `store` is kept."
    )


class MediaSettings(BaseModel):
    """Pictures and files by URL"""

    media_max_bytes: int = Field(
        16 * MB,
        ge=1024,
        description="The maximum size of all pictures and files that one request names by URL. A project needs "
        "`--allow-media-urls`.",
    )
    media_allow_private: bool = Field(
        False, description="Whether URLs of pictures and files may have private addresses, plain http and any port."
    )


class CacheSettings(BaseModel):
    """The cache"""

    embedding_cache_seconds: int = Field(
        7 * DAY, ge=0, description="The time for which an unused embedding stays in the cache. 0: none is cached."
    )
    response_cache_seconds: int = Field(
        DAY, ge=0, description="The maximum `ttl` of a cached answer. 0: none is cached."
    )
    cache_max_bytes: int = Field(
        256 * MB,
        ge=MB,
        description="The maximum size of all cached embeddings and answers. What expires first is removed first.",
    )


class JobSettings(BaseModel):
    """Jobs and workers"""

    shard_lines: int = Field(256, ge=1, le=4096, description="The maximum number of lines of a shard.")
    segment_seconds: float = Field(1.0, gt=0, description="The time after which a finished line is durable.")
    lease_seconds: float = Field(30, gt=0, description="The time without a heartbeat after which a claim is revoked.")
    redelivery_seconds: float = Field(
        10,
        gt=0,
        description="The time after which an unclaimed message is published again. It doubles with each repetition.",
    )


class BatchSettings(BaseModel):
    """Batches and files"""

    batch_max_lines: int = Field(50_000, ge=1, description="The maximum number of lines of a batch.")
    batch_max_bytes: int = Field(200 * MB, ge=1, description="The maximum size of a batch's input file.")
    window_max_seconds: int = Field(
        30 * DAY, ge=1, description="The longest completion window of a batch, and how far ahead it may begin."
    )
    file_max_bytes: int = Field(512 * MB, ge=1, description="The maximum size of a file that is uploaded at once.")
    file_expiry_batch_seconds: int = Field(
        30 * DAY, ge=1, description="The time for which the input and output files of batches are kept."
    )


class StoreSettings(BaseModel):
    """Vector stores"""

    vectors_url: str = Field(
        "", description="The URL of the vector database, `weaviate://host:port`. Empty: LanceDB in the data folder."
    )
    vectors_api_key: str = Field("", repr=False, description="The key of the server in `NIGHTMILL_VECTORS_URL`.")
    embedding_model: str = Field(
        "", description="The embedding model of vector stores that name none. Empty: the first in the models file."
    )
    rewrite_model: str = Field(
        "", description="The chat model that rewrites queries with `rewrite_query`. Empty: queries stay as they are."
    )
    parse_seconds: float = Field(
        120, gt=0, description="The maximum time for parsing one document, on the clock and of CPU."
    )


class SourceSettings(BaseModel):
    """Sources of vector stores"""

    source_folders: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="The folders whose files any project may use as a source, separated by commas.",
    )
    source_s3: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="The prefixes `s3://bucket/prefix` whose objects any project may use as a source, separated by "
        "commas. The credentials are those that boto finds.",
    )
    source_allow_private: bool = Field(
        False, description="Whether URLs of sources may have private addresses, plain http and any port."
    )
    source_max_items: int = Field(10_000, ge=1, description="The maximum number of files of one source.")
    source_seconds: float = Field(
        3600, gt=0, description="The maximum time in which one sync of a source reads its files."
    )


class TrainingSettings(BaseModel):
    """Fine-tuning and evaluations"""

    finetune_exclusive_device: bool = Field(
        False,
        description="Whether the engines of `gpu` and `tuned` on a device are closed while a training runs on it.",
    )
    finetune_max_seconds: int = Field(
        DAY,
        ge=0,
        description="The time of training, without pauses, after which a fine-tuning job fails with `time_limit`. 0: "
        "no limit.",
    )
    mlflow_url: str = Field(
        "",
        description="The URL of MLflow's tracking server, to which the steps of every training are sent. Empty: none.",
    )
    mlflow_token: str = Field("", repr=False, description="The bearer token of MLflow's server, or `user:password`.")
    wandb_mode: Literal["off", "offline", "online"] = Field(
        "off",
        description="What happens to `integrations` with Weights & Biases: `off` refuses them, `offline` keeps runs as "
        "files in the storage, `online` sends them.",
    )
    wandb_api_key: str = Field("", repr=False, description="The key of Weights & Biases for `online`.")
    wandb_url: str = Field("", description="The URL of your own server of Weights & Biases. Empty: the public one.")
    wordnet: str = Field(
        "", description="The folder of WordNet for the metric `meteor`. Empty: that of Debian's package wordnet-base."
    )


class ProjectSettings(BaseModel):
    """Limits of each project"""

    project_max_bytes: int = Field(
        0,
        ge=0,
        description="The maximum size of what a project stores: files, vectors, responses, chats and checkpoints. 0: "
        "no limit.",
    )
    project_max_queued_tokens: int = Field(
        0, ge=0, description="The maximum number of estimated tokens of a project's lines that wait. 0: no limit."
    )
    project_finetune_jobs: int = Field(
        20, ge=1, description="The maximum number of a project's fine-tuning jobs in progress."
    )
    project_eval_runs: int = Field(100, ge=1, description="The maximum number of a project's eval runs in progress.")
    project_threads: int = Field(
        10, ge=1, le=40, description="The maximum number of an API process's 40 threads that a project uses at once."
    )
    project_body_bytes: int = Field(
        64 * MB,
        ge=1024,
        description="The maximum size of the JSON bodies of a project's requests in progress, with what they continue; "
        "and again of the responses that its WebSockets cache.",
    )
    project_streams: int = Field(
        64,
        ge=1,
        description="The maximum number of streams, downloads and WebSockets that a project has at one API process.",
    )


class RetentionSettings(BaseModel):
    """Retention and the audit log"""

    retention_seconds: int = Field(
        30 * DAY,
        ge=1,
        description="The time for which segments (retries need them), events, deliveries and their attempts are kept.",
    )
    job_retention_seconds: int = Field(
        0,
        ge=0,
        description="The time for which ended jobs are kept, at least `NIGHTMILL_RETENTION_SECONDS`. 0: forever.",
    )
    audit_retention_seconds: int = Field(
        0,
        ge=0,
        description="The time for which audit rows are kept, at least `NIGHTMILL_RETENTION_SECONDS`. 0: forever.",
    )
    audit_key: str = Field(
        "",
        repr=False,
        description="The key that signs the audit log, the same on every host, of at least 32 characters. Empty: "
        "`audit.key` of the data folder.",
    )
    audit_anchor: str = Field(
        "",
        description="The place to which the head of the audit log is sent once a day: a file, or the `https://` URL of "
        "a signed webhook. Empty: none.",
    )
    audit_anchor_secret: str = Field(
        "", repr=False, description="The secret that signs the head of the audit log for a URL: `whsec_` and base64."
    )


class WebhookSettings(BaseModel):
    """Webhooks"""

    webhook_allow_private: bool = Field(
        False, description="Whether URLs of webhooks may have private addresses, plain http and any port."
    )
    webhook_retry_seconds: Annotated[tuple[float, ...], NoDecode] = Field(
        (0, 5, 30, 120, 600, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400),
        description="The delays before each attempt at a delivery, separated by commas. After the last it has failed.",
    )
    webhook_timeout_seconds: float = Field(15, gt=0, description="The maximum time of one attempt at a delivery.")
