"""The models of a deployment, from one checked file (`models.yaml`, which documents its own keys).

    name ──▶ a model of the file ──▶ a model of some endpoint ──▶ an alias ──▶ an endpoint that takes any name

A Registry is immutable; `fresh()` returns the one that the file describes now. `Models` holds it for a process.
"""

import ipaddress
import logging
import re
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from jobs.queues import Queue
from jobs.registry.models import base_model_of
from jobs.requests import embedding_prompts
from jobs.requests.endpoints import validate_server_url
from jobs.settings import Settings

log = logging.getLogger(__name__)

ANY_MODEL: Final = "*"  # an endpoint without a list of models takes any name
PACKAGED_FILE: Final = Path(__file__).with_name("models.yaml")
PRIVATE_SUFFIXES: Final = (".local", ".internal", ".localhost", ".lan", ".cluster.local")

Route = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/rerank"]
GENERATION: Final[tuple[Route, ...]] = ("/v1/chat/completions", "/v1/completions", "/v1/responses")


#: OpenAI's names by the endpoint that a model must serve to get them as aliases. See `Registry.openai_aliases`.
OPENAI_NAMES: Final[Mapping[Route, tuple[str, ...]]] = {
    "/v1/chat/completions": (
        "gpt-4o-mini", "gpt-4o", "gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano", "gpt-5", "gpt-5-mini", "gpt-5-nano",
        "gpt-3.5-turbo",
    ),
    "/v1/completions": ("gpt-3.5-turbo-instruct",),
    "/v1/embeddings": ("text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002"),
}  # fmt: skip


#: What PyYAML raises for malformed YAML, and for malformed values such as 2026-13-01.
NO_YAML: Final = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)


#: Where an adapter that was trained here can be served while vLLM is off.
VLLM_OFF: Final = (
    "vLLM is off here. `nightmill up` without --no-vllm (NIGHTMILL_VLLM_ENABLED=true) serves it, and so does any other "
    "vLLM that gets it by `nightmill finetune export`."
)


class ModelsFileError(ValueError):
    """The models file cannot be used; the message says where and why."""


class EngineKind(StrEnum):
    VLLM = "vllm"
    EMBED = "embed"
    RERANK = "rerank"
    HTTP = "http"

    @property
    def embeds(self) -> bool:
        """Return whether it is an engine for embeddings or re-ranking."""
        return self in (EngineKind.EMBED, EngineKind.RERANK)


DEFAULT_QUEUES: Final[Mapping[EngineKind, str]] = {
    EngineKind.VLLM: Queue.GENERATE,
    EngineKind.EMBED: Queue.EMBED,
    EngineKind.RERANK: Queue.EMBED,
    EngineKind.HTTP: Queue.GENERATE,
}
DEFAULT_ROUTES: Final[Mapping[EngineKind, tuple[Route, ...]]] = {
    EngineKind.VLLM: GENERATION,
    EngineKind.EMBED: ("/v1/embeddings",),
    EngineKind.RERANK: ("/v1/rerank",),
    EngineKind.HTTP: (*GENERATION, "/v1/embeddings"),
}


def is_internal(url: str) -> bool:
    """Return whether the server is on this machine or in a private network, by its name; nothing is resolved."""
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(PRIVATE_SUFFIXES)
    return address.is_loopback or (address.is_private and not address.is_unspecified)


def _url(value: str) -> str:
    return validate_server_url(value, key="name the key's variable in api_key_env")


def _name(value: str) -> str:
    if not re.fullmatch(r"[^\s\x00-\x1f*]{1,255}", value):
        raise ValueError("must have 1 to 255 characters and neither spaces nor *")
    return value


Name = Annotated[str, AfterValidator(_name)]


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSource(_Checked):
    packaged: str | None = None
    path: Path | None = None
    repo: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")
    urls: tuple[Annotated[str, AfterValidator(_url)], ...] = ()
    model: str | None = None
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    internal: bool | None = None

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        given = [key for key in ("packaged", "path", "repo", "urls") if getattr(self, key)]
        if len(given) != 1:
            raise ValueError(f"must have exactly one of packaged, path, repo, urls; has {given or 'none'}")
        self._belongs(given[0], "repo", ("revision",))
        self._belongs(given[0], "urls", ("model", "api_key_env", "internal"))
        if self.repo and not self.revision:
            raise ValueError("repo needs a revision: the 40 digits of a commit")
        return self

    def is_internal(self, url: str) -> bool:
        """Return whether prompts of any project may go to this server."""
        return is_internal(url) if self.internal is None else self.internal

    def _belongs(self, kind: str, owner: str, keys: tuple[str, ...]) -> None:
        strays = [key for key in keys if getattr(self, key) is not None]
        if strays and kind != owner:
            raise ValueError(f"{', '.join(strays)} belongs to {owner}, not to {kind}")


class ModelConfig(_Checked):
    name: Name
    source: ModelSource
    engine: EngineKind
    queue: str = Field("", pattern=r"^gpu\.[a-z0-9][a-z0-9_.-]*$")
    engine_args: dict[str, Any] = Field(default_factory=dict)
    aliases: tuple[Name, ...] = ()
    endpoints: tuple[Route, ...] = ()
    max_model_len: int | None = Field(None, ge=1)
    tokenizer: Path | None = None
    owned_by: str = "nightmill"
    license: str | None = None
    training_data: tuple[str, ...] | None = None
    cost_per_million_tokens: float | None = Field(None, ge=0, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("engine") not in set(EngineKind):
            return value
        kind = EngineKind(value["engine"])
        return {"queue": DEFAULT_QUEUES[kind], "endpoints": DEFAULT_ROUTES[kind]} | value

    @model_validator(mode="after")
    def _engine_fits_source(self) -> Self:
        if self.queue in (Queue.FINETUNE, Queue.TUNED):
            raise ValueError(f"{self.queue} is the queue of a process that serves no model of this file")
        remote = self.engine is EngineKind.HTTP
        if remote != bool(self.source.urls):
            raise ValueError("engine http and source urls belong together")
        if self.tokenizer and not remote:
            raise ValueError("tokenizer is for models behind urls; others have their own")
        if remote and self.engine_args.keys() - set(embedding_prompts.ARGUMENTS):
            raise ValueError(
                f"engine_args of http are {', '.join(embedding_prompts.ARGUMENTS)}; others are for engines in process"
            )
        if self.engine is not EngineKind.VLLM and (fault := embedding_prompts.wrong(self.engine_args)):
            raise ValueError(f"engine_args: {fault}")
        return self

    @property
    def external(self) -> bool:
        """Return whether only external servers have this model.

        If some are internal, each project gets those that it may use.
        """
        urls = self.source.urls
        return bool(urls) and not any(self.source.is_internal(url) for url in urls)

    @property
    def upstream(self) -> str:
        """Return the model's name at its servers."""
        return self.source.model or self.name


class _File(_Checked):
    models: dict[str, ModelConfig]

    @model_validator(mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """Give each model its name, which is its key."""
        models = value.get("models") if isinstance(value, dict) else None
        if not isinstance(models, dict):
            return value
        return value | {"models": {k: v | {"name": k} if isinstance(v, dict) else v for k, v in models.items()}}


@dataclass(frozen=True, slots=True)
class Registry:
    """The models that are served, and those that are not: of engine `vllm`, while vLLM is off. They can be trained."""

    models: Mapping[str, ModelConfig]
    aliases: Mapping[str, str]
    file: Path
    unserved: Mapping[str, ModelConfig] = field(default_factory=dict)
    vllm_enabled: bool = True
    openai_aliases: bool = False  # whether OpenAI's names become aliases of the first suitable model
    stamp: tuple[int, ...] = ()
    awaited: Path | None = None  # a file that replaces this one as soon as it exists

    @classmethod
    def load(cls, settings: Settings) -> "Registry":
        """Return the models that this deployment can serve.

        Raises: ModelsFileError.
        """
        read = partial(cls.read, vllm_enabled=settings.vllm_enabled, openai_aliases=settings.openai_aliases)
        if settings.models_file:
            return read(Path(settings.models_file).expanduser())
        own = settings.data_dir.absolute() / PACKAGED_FILE.name
        return replace(read(own if own.exists() else PACKAGED_FILE), awaited=own)

    @classmethod
    def read(cls, file: Path, *, vllm_enabled: bool = True, openai_aliases: bool = False) -> "Registry":
        stamp = _stamp(file)
        models = {model.name: model for model in _parse_cached(file, stamp)}
        usable = {name: m for name, m in models.items() if vllm_enabled or m.engine is not EngineKind.VLLM}
        unserved = {name: model for name, model in models.items() if name not in usable}
        aliases = _openai_aliases(usable.values()) if openai_aliases else {}
        aliases |= {alias: model.name for model in usable.values() for alias in model.aliases}
        served = MappingProxyType(usable), MappingProxyType(aliases)
        return cls(*served, file, MappingProxyType(unserved), vllm_enabled, openai_aliases, stamp)

    def fresh(self) -> "Registry":
        """Return this registry, or a new one if the file has changed. An invalid file is logged and ignored."""
        file = self.awaited if self.awaited and self.awaited.exists() else self.file
        stamp = _stamp(file)
        if (file, stamp) == (self.file, self.stamp):
            return self
        try:
            read = Registry.read(file, vllm_enabled=self.vllm_enabled, openai_aliases=self.openai_aliases)
            return replace(read, awaited=self.awaited)
        except ModelsFileError as error:
            log.error("models_file.rejected", extra={"file": str(file), "reason": str(error)})  # noqa: TRY400
            return replace(self, file=file, stamp=stamp)

    def resolve(self, name: str) -> ModelConfig | None:
        """Return the model of this name or alias."""
        return self.models.get(name) or self.models.get(self.aliases.get(name, ""))

    @property
    def trainable(self) -> dict[str, ModelConfig]:
        """Return the models whose weights this deployment can train, whether they are served or not."""
        return {name: m for name, m in self.models.items() if m.engine is EngineKind.VLLM} | dict(self.unserved)

    def base(self, name: str) -> ModelConfig | None:
        """Return the model of this name or alias that can be trained."""
        names = (name, self.aliases.get(name))
        return next((m for m in self.trainable.values() if m.name in names or name in m.aliases), None)

    def price_source(self, name: str) -> ModelConfig | None:
        """Return the model whose prices hold for a name: that of this name or alias, or the base of a tuned model."""
        base = base_model_of(name)
        return self.resolve(name) or self.resolve(base) or self.base(base)

    def embedder(self, named: str) -> str | None:
        """Return the default embedding model: the one that the settings name, otherwise the first of the file."""
        embedding_models = [model for model in self.models.values() if "/v1/embeddings" in model.endpoints]
        embedding_models.sort(key=lambda model: model.engine is not EngineKind.EMBED)
        return named or next((model.name for model in embedding_models), None)

    def target(self, name: str, live: Collection[str]) -> str | None:
        """Return the name under which workers serve `name`; `live` holds the names that endpoints have shown."""
        if name in self.models or name in live:
            return name
        if name in self.aliases:
            return self.aliases[name]
        return name if ANY_MODEL in live else None


class Models:
    """The models of one process, for all its threads: as the file says now, or as it said when it was last valid."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._last: Registry | None = None

    def now(self) -> Registry:
        """Return the current registry.

        Raises: ModelsFileError, while the file has not been valid since this process started.
        """
        with self._lock:
            self._last = self._last.fresh() if self._last else Registry.load(self._settings)
            return self._last


def _openai_aliases(models: Collection[ModelConfig]) -> dict[str, str]:
    """Return OpenAI's names that no model has, each with the first of `models` that serves its endpoint."""
    names = {model.name for model in models}
    aliases_by_name: dict[str, str] = {}
    for route, aliases in OPENAI_NAMES.items():
        first = next((model.name for model in models if route in model.endpoints), None)
        aliases_by_name |= {alias: first for alias in aliases if first is not None and alias not in names}
    return aliases_by_name


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        status = file.stat()
    except OSError:
        return ()
    return (status.st_mtime_ns, status.st_size, status.st_ino)


@lru_cache(maxsize=4)
def _parse_cached(file: Path, stamp: tuple[int, ...]) -> tuple[ModelConfig, ...]:  # noqa: ARG001 (part of the cache key)
    """Read and check the whole file. The result is cached: it takes milliseconds, and every plan needs it."""
    return tuple(_parse(file))


def _parse(file: Path) -> list[ModelConfig]:
    try:
        text = file.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
        problems = list(_duplicate_keys(root))
    except (OSError, *NO_YAML) as error:
        raise ModelsFileError(f"{file}: {error}") from error
    try:
        models = [_resolve_paths(model, file.parent) for model in _File.model_validate(content).models.values()]
    except ValidationError as error:
        problems += [(_line(root, e["loc"]), _words(e["loc"], e["msg"])) for e in error.errors()]
    else:
        problems += _ambiguous(root, models)
    if problems:
        lines = [f"{file}, line {line}: {words}" for line, words in sorted(problems)]
        raise ModelsFileError("\n".join(lines))
    return models


def _resolve_paths(model: ModelConfig, folder: Path) -> ModelConfig:
    """Return the model with absolute paths; paths in the file are relative to it."""
    if model.tokenizer is not None:
        return model.model_copy(update={"tokenizer": (folder / model.tokenizer.expanduser()).absolute()})
    if model.source.path is None:
        return model
    path = (folder / model.source.path.expanduser()).absolute()
    return model.model_copy(update={"source": model.source.model_copy(update={"path": path})})


def _ambiguous(root: yaml.Node | None, models: list[ModelConfig]) -> list[tuple[int, str]]:
    """Return problems of names that more than one model has."""
    owners = {model.name: model.name for model in models}
    problems = []
    for model in models:
        for index, alias in enumerate(model.aliases):
            if owners.setdefault(alias, model.name) != model.name or alias == model.name:
                loc = ("models", model.name, "aliases", index)
                problems.append((_line(root, loc), _words(loc, f"{alias} already names {owners[alias]}")))
    return problems


def _duplicate_keys(node: yaml.Node | None) -> "list[tuple[int, str]]":
    """Return duplicate keys of a mapping; YAML would silently take the last."""
    if isinstance(node, yaml.SequenceNode):
        return [problem for item in node.value for problem in _duplicate_keys(item)]
    if not isinstance(node, yaml.MappingNode):
        return []
    problems, seen = [], set()
    for key, value in node.value:
        if key.value in seen:
            problems.append((key.start_mark.line + 1, f"{key.value}: is a duplicate key"))
        seen.add(key.value)
        problems += _duplicate_keys(value)
    return problems


def _line(node: yaml.Node | None, loc: tuple[int | str, ...]) -> int:
    """Return the line of the innermost part of `loc` that is in the file."""
    line = 1
    for part in loc:
        child = _child(node, part)
        if child is None:
            break
        line, node = child
    return line


def _child(node: yaml.Node | None, part: int | str) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    return None


def _words(loc: tuple[int | str, ...], message: str) -> str:
    return f"{'.'.join(map(str, loc))}: {message.removeprefix('Value error, ')}"
