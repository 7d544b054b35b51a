"""The models of a deployment, from one checked file (`models.yaml`, which documents its own keys).

    name ──▶ a model of the file ──▶ a model some endpoint has ──▶ an alias ──▶ an endpoint that takes any name

A Registry never changes; `fresh()` gives the one that the file describes now. `Models` is that for a process.
"""

import ipaddress
import logging
import re
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from jobs.queues import Queue
from jobs.requests import prompts
from jobs.requests.endpoints import checked_server
from jobs.settings import Settings

log = logging.getLogger(__name__)

ANY_MODEL: Final = "*"  # an endpoint that has no list of models takes any name
PACKAGED_FILE: Final = Path(__file__).with_name("models.yaml")
PRIVATE_SUFFIXES: Final = (".local", ".internal", ".localhost", ".lan", ".cluster.local")

Route = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/rerank"]
GENERATION: Final[tuple[Route, ...]] = ("/v1/chat/completions", "/v1/completions", "/v1/responses")


#: OpenAI's names, by the endpoint that a model must serve to have them as aliases. See `Registry.openai_aliases`.
OPENAI_NAMES: Final[Mapping[Route, tuple[str, ...]]] = {
    "/v1/chat/completions": (
        "gpt-4o-mini", "gpt-4o", "gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano", "gpt-5", "gpt-5-mini", "gpt-5-nano",
        "gpt-3.5-turbo",
    ),
    "/v1/completions": ("gpt-3.5-turbo-instruct",),
    "/v1/embeddings": ("text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002"),
}  # fmt: skip


#: What PyYAML raises for a text that is no YAML, and for a value that is none of its kind: a 2026-13-01.
NO_YAML: Final = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)


class ModelsFileError(ValueError):
    """The models file cannot be used; the message says where and why."""


class EngineKind(StrEnum):
    VLLM = "vllm"
    EMBED = "embed"
    RERANK = "rerank"
    HTTP = "http"


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
    """Is this server on this machine or in a private network, as far as its name tells? Nothing is resolved."""
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(PRIVATE_SUFFIXES)
    return address.is_loopback or (address.is_private and not address.is_unspecified)


def _url(value: str) -> str:
    return checked_server(value, key="name the key's variable in api_key_env")


def _name(value: str) -> str:
    if not re.fullmatch(r"[^\s\x00-\x1f*]{1,255}", value):
        raise ValueError("must have 1 to 255 characters and neither spaces nor *")
    return value


Name = Annotated[str, AfterValidator(_name)]


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Checked):
    packaged: str | None = None
    path: Path | None = None
    repo: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")
    urls: tuple[Annotated[str, AfterValidator(_url)], ...] = ()
    model: str | None = None
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    internal: bool | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [key for key in ("packaged", "path", "repo", "urls") if getattr(self, key)]
        if len(given) != 1:
            raise ValueError(f"must have exactly one of packaged, path, repo, urls; has {given or 'none'}")
        self._belongs(given[0], "repo", ("revision",))
        self._belongs(given[0], "urls", ("model", "api_key_env", "internal"))
        if self.repo and not self.revision:
            raise ValueError("repo needs a revision: the 40 digits of a commit")
        return self

    def is_internal(self, url: str) -> bool:
        """Whether the prompts of any project may go to this server."""
        return is_internal(url) if self.internal is None else self.internal

    def _belongs(self, kind: str, owner: str, keys: tuple[str, ...]) -> None:
        strays = [key for key in keys if getattr(self, key) is not None]
        if strays and kind != owner:
            raise ValueError(f"{', '.join(strays)} belongs to {owner}, not to {kind}")


class Model(_Checked):
    name: Name
    source: Source
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
        remote = self.engine is EngineKind.HTTP
        if remote != bool(self.source.urls):
            raise ValueError("engine http and source urls belong together")
        if self.tokenizer and not remote:
            raise ValueError("tokenizer is for models behind urls; others have their own")
        if remote and self.engine_args.keys() - set(prompts.ARGUMENTS):
            raise ValueError(
                f"engine_args of http are {', '.join(prompts.ARGUMENTS)}; others are for engines in process"
            )
        if self.engine is not EngineKind.VLLM and (told := prompts.wrong(self.engine_args)):
            raise ValueError(f"engine_args: {told}")
        return self

    @property
    def external(self) -> bool:
        """Whether only external servers have this model. Of both kinds a project gets those that it may use."""
        urls = self.source.urls
        return bool(urls) and not any(self.source.is_internal(url) for url in urls)

    @property
    def upstream(self) -> str:
        """What its servers call it."""
        return self.source.model or self.name


class _File(_Checked):
    models: dict[str, Model]

    @model_validator(mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """A model knows its own name, which is its key."""
        models = value.get("models") if isinstance(value, dict) else None
        if not isinstance(models, dict):
            return value
        return value | {"models": {k: v | {"name": k} if isinstance(v, dict) else v for k, v in models.items()}}


@dataclass(frozen=True, slots=True)
class Registry:
    models: Mapping[str, Model]
    aliases: Mapping[str, str]
    file: Path
    vllm_enabled: bool = True
    openai_aliases: bool = False  # whether OpenAI's names that the file does not have name the first model that can
    stamp: tuple[int, ...] = ()
    awaited: Path | None = None  # another file, which takes the place of this one as soon as it is there

    @classmethod
    def load(cls, settings: Settings) -> "Registry":
        """The models that this deployment can serve. Raises ModelsFileError."""
        read = partial(cls.read, vllm_enabled=settings.vllm_enabled, openai_aliases=settings.openai_aliases)
        if settings.models_file:
            return read(Path(settings.models_file).expanduser())
        own = settings.data_dir.absolute() / PACKAGED_FILE.name
        return replace(read(own if own.exists() else PACKAGED_FILE), awaited=own)

    @classmethod
    def read(cls, file: Path, *, vllm_enabled: bool = True, openai_aliases: bool = False) -> "Registry":
        stamp = _stamp(file)
        usable = {m.name: m for m in _parsed(file, stamp) if vllm_enabled or m.engine is not EngineKind.VLLM}
        aliases = _openai_aliases(usable.values()) if openai_aliases else {}
        aliases |= {alias: model.name for model in usable.values() for alias in model.aliases}
        return cls(MappingProxyType(usable), MappingProxyType(aliases), file, vllm_enabled, openai_aliases, stamp)

    def fresh(self) -> "Registry":
        """This one, or a new one if the file has changed. One that has become wrong is reported and not taken."""
        file = self.awaited if self.awaited and self.awaited.exists() else self.file
        stamp = _stamp(file)
        if (file, stamp) == (self.file, self.stamp):
            return self
        try:
            found = Registry.read(file, vllm_enabled=self.vllm_enabled, openai_aliases=self.openai_aliases)
            return replace(found, awaited=self.awaited)
        except ModelsFileError as error:
            log.error("models_file.rejected", extra={"file": str(file), "reason": str(error)})  # noqa: TRY400
            return replace(self, file=file, stamp=stamp)

    def resolve(self, name: str) -> Model | None:
        """The model of that name or alias."""
        return self.models.get(name) or self.models.get(self.aliases.get(name, ""))

    def embedder(self, named: str) -> str | None:
        """The model that embeds where none is asked for: the one that the settings name, else the first there is."""
        found = [model for model in self.models.values() if "/v1/embeddings" in model.endpoints]
        found.sort(key=lambda model: model.engine is not EngineKind.EMBED)
        return named or next((model.name for model in found), None)

    def target(self, name: str, live: Collection[str]) -> str | None:
        """The name under which a worker serves what a client calls `name`; `live` is what endpoints have shown."""
        if name in self.models or name in live:
            return name
        if name in self.aliases:
            return self.aliases[name]
        return name if ANY_MODEL in live else None


class Models:
    """The models of one process, for any of its threads: as the file says now, or as it did when it last was right."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._last: Registry | None = None

    def now(self) -> Registry:
        """Raises ModelsFileError while the file has not been right since this process began."""
        with self._lock:
            self._last = self._last.fresh() if self._last else Registry.load(self._settings)
            return self._last


def _openai_aliases(models: Collection[Model]) -> dict[str, str]:
    """Return OpenAI's names that no model has, and the first of `models` that serves the endpoint of each."""
    names = {model.name for model in models}
    found: dict[str, str] = {}
    for route, aliases in OPENAI_NAMES.items():
        first = next((model.name for model in models if route in model.endpoints), None)
        found |= {alias: first for alias in aliases if first is not None and alias not in names}
    return found


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_size, found.st_ino)


@lru_cache(maxsize=4)
def _parsed(file: Path, stamp: tuple[int, ...]) -> tuple[Model, ...]:  # noqa: ARG001 (another file under the name)
    """Read and check the whole file: milliseconds, which every plan would pay."""
    return tuple(_parse(file))


def _parse(file: Path) -> list[Model]:
    try:
        text = file.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
        problems = list(_repeated(root))
    except (OSError, *NO_YAML) as error:
        raise ModelsFileError(f"{file}: {error}") from error
    try:
        models = [_rooted(model, file.parent) for model in _File.model_validate(content).models.values()]
    except ValidationError as error:
        problems += [(_line(root, e["loc"]), _words(e["loc"], e["msg"])) for e in error.errors()]
    else:
        problems += _ambiguous(root, models)
    if problems:
        lines = [f"{file}, line {line}: {words}" for line, words in sorted(problems)]
        raise ModelsFileError("\n".join(lines))
    return models


def _rooted(model: Model, folder: Path) -> Model:
    """Paths in the file are relative to it."""
    if model.tokenizer is not None:
        return model.model_copy(update={"tokenizer": (folder / model.tokenizer.expanduser()).absolute()})
    if model.source.path is None:
        return model
    path = (folder / model.source.path.expanduser()).absolute()
    return model.model_copy(update={"source": model.source.model_copy(update={"path": path})})


def _ambiguous(root: yaml.Node | None, models: list[Model]) -> list[tuple[int, str]]:
    """A name may mean one model only."""
    owners = {model.name: model.name for model in models}
    problems = []
    for model in models:
        for index, alias in enumerate(model.aliases):
            if owners.setdefault(alias, model.name) != model.name or alias == model.name:
                loc = ("models", model.name, "aliases", index)
                problems.append((_line(root, loc), _words(loc, f"{alias} already names {owners[alias]}")))
    return problems


def _repeated(node: yaml.Node | None) -> "list[tuple[int, str]]":
    """Keys that stand twice in one mapping: YAML would silently take the last."""
    if isinstance(node, yaml.SequenceNode):
        return [problem for item in node.value for problem in _repeated(item)]
    if not isinstance(node, yaml.MappingNode):
        return []
    problems, seen = [], set()
    for key, value in node.value:
        if key.value in seen:
            problems.append((key.start_mark.line + 1, f"{key.value}: stands here a second time"))
        seen.add(key.value)
        problems += _repeated(value)
    return problems


def _line(node: yaml.Node | None, loc: tuple[int | str, ...]) -> int:
    """The line of the innermost part of `loc` that is in the file."""
    line = 1
    for part in loc:
        found = _child(node, part)
        if found is None:
            break
        line, node = found
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
