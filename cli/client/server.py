"""Ask the server: the official SDK for OpenAI's routes and, through it, Nightmill's own routes.

URL and key come from the command line or the environment, else from `run.json` of the data folder, which `nightmill up`
writes. Without `up` (systemd, containers) the settings name the URL, and `operator.key` of the data folder is the key.
"""

import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import quote, urlsplit

from cli.errors import CliError
from cli.output_files import is_replaced, whole
from cli.terminal import say, visible
from jobs.timings import Timings

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from openai import APIResponse, RequestOptions
    from openai.types import FilePurpose

    from cli.up.folder import DataFolder
    from jobs.settings import Settings

_JSON = dict[str, Any]
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_PORTS = {"http": 80, "https": 443}
_LOCATION_SETTINGS = {"public_url", "host", "port"}  # any of these settings names one deployment
_KEY_PREFIX = "nm_"  # of the keys that `nightmill keys create` makes
_TIMEOUT = 60.0  # seconds for one answer; uploads get more
_UPLOAD_TIMEOUT = 3600.0
ANSWER_TIMEOUT = 600.0  # seconds for an answer of a model
_PART_BYTES = 64 << 20  # of a file that is uploaded in parts
_BYTES = "application/octet-stream"
_PAGE = 100  # entries of one page, at most
_READ = 1 << 16
_RAW = "X-Stainless-Raw-Response"  # with "stream", the SDK returns an answer before it has read the body


def connect(url: str | None, api_key: str | None, data_dir: Path | None) -> "Server":
    """Return the server to use.

    Raises:
        ServerUnavailable: nothing answers at the URL that was given.
        CliError: no URL or no key is known.
    """
    from cli.up import readiness
    from cli.up.effective import effective
    from cli.up.folder import DataFolder

    url, api_key = named(url, api_key, data_dir)
    config = effective(data_dir=data_dir)
    folder = DataFolder(config.data_dir)
    run = {} if url and api_key else folder.live_run() or ({} if url else _find_unmanaged(config, folder))
    base = url or run.get("url")
    key = api_key or (run.get("api_key") if not url or _is_same_server(url, str(run.get("url"))) else "")
    if not base:
        advice = "start it with `nightmill up`, or name its folder with --data-dir or a server with --url"
        raise CliError(f"nothing runs in {folder.path}; {advice}")
    if not key and readiness.look(base.rstrip("/").removesuffix("/v1")) is None:
        there = f"what runs in {folder.path} is at {run['url']}" if run else "`nightmill doctor` looks"
        raise ServerUnavailable(f"no server answers at {base}; is the URL right? {there}")
    if not key:
        advice = "set NIGHTMILL_API_KEY, or make one with `nightmill keys create --project NAME`"
        raise CliError(f"no API key for {base}: {advice}")
    if not key.isascii():
        raise CliError("the API key is none: it has characters that no key has")
    return Server(base.rstrip("/").removesuffix("/v1"), key)


def named(url: str | None, api_key: str | None, data_dir: Path | None) -> tuple[str | None, str | None]:
    """Return URL and key as given or, where none is, as OpenAI's variables for its SDKs say.

    `OPENAI_BASE_URL` counts where no server, no key and no data folder is given: it may be another provider's, which
    must not get a key of Nightmill's. `OPENAI_API_KEY` may be a secret of that provider: it counts for the server of
    `OPENAI_BASE_URL`, and for any other where it is a key of Nightmill's.
    """
    theirs, key = os.environ.get("OPENAI_BASE_URL", ""), os.environ.get("OPENAI_API_KEY", "")
    if not url and not api_key and not data_dir:
        url = theirs
    if url and not api_key and (_is_same_server(url, theirs) or key.startswith(_KEY_PREFIX)):
        api_key = key
    return url or None, api_key or None


def _is_same_server(first: str, second: str) -> bool:
    """Return whether two URLs name the same server, so that the key of one may be sent to the other."""
    return _location(first) == _location(second)


def _location(url: str) -> tuple[str, ...]:
    try:
        parts = urlsplit(url)
        host = "127.0.0.1" if parts.hostname in _LOOPBACK else parts.hostname or ""
        port = parts.port or _PORTS.get(parts.scheme)
        return parts.scheme, host, str(port), parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    except ValueError:
        return ("", url)


def _find_unmanaged(config: "Settings", folder: "DataFolder") -> _JSON:
    """Return URL and key of a deployment that was not started by `up`, empty where the settings name none.

    The key is not sent to a server that only has the default port.
    """
    from cli.up import readiness

    key = folder.operator_key() if config.model_fields_set & _LOCATION_SETTINGS else ""
    url = readiness.running_url(config) if key else ""
    return {"url": url, "api_key": key} if url else {}


class ServerUnavailable(CliError):
    """No server answers, or the server cannot answer now."""


class ModelStillLoading(ServerUnavailable):
    """A worker is loading the model."""


class ObjectNotFound(CliError):
    """The server has no object of this id."""


def _error_type(status: int, code: str | None) -> type[CliError]:
    if code == "model_loading":
        return ModelStillLoading
    if status == HTTPStatus.NOT_FOUND:
        return ObjectNotFound
    return ServerUnavailable if status >= HTTPStatus.INTERNAL_SERVER_ERROR else CliError


@contextmanager
def _translate_errors(url: str) -> Iterator[None]:
    """Translate the errors of the SDK into errors of one line."""
    import httpx2
    import openai

    try:
        yield
    except openai.APIConnectionError as error:
        raise ServerUnavailable(f"no server answers at {url}; is it running? `nightmill doctor` looks") from error
    except httpx2.TransportError as error:  # inside a body, which the SDK does not read
        raise ServerUnavailable(f"the server at {url} broke off its answer") from error
    except (httpx2.InvalidURL, UnicodeEncodeError) as error:
        raise CliError(f"no id has such characters: {visible(str(error))}") from error
    except openai.AuthenticationError as error:
        raise CliError(f"the server at {url} does not accept this key") from error
    except openai.APIStatusError as error:
        where = f" ({error.param})" if error.param else ""
        message = error.body.get("message") if isinstance(error.body, dict) else None
        error_type = _error_type(error.status_code, error.code)
        raise error_type(visible(f"{message or error.message}{where}")) from error


class Entries(list[_JSON]):
    """The first entries of a list on the server. `has_more`: the list is longer."""

    has_more = False


class Server:
    """A client of one server with one key."""

    def __init__(self, url: str, api_key: str, timings: Timings = Timings()) -> None:
        import httpx2
        from openai import OpenAI

        self.url = url
        self.timings = timings
        try:
            self.sdk = OpenAI(base_url=f"{url}/v1", api_key=api_key, timeout=_TIMEOUT)
        except httpx2.InvalidURL as error:
            raise CliError(f"{url} is no URL: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.sdk.close()

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> _JSON:
        with _translate_errors(self.url):
            answer = self.sdk.get(path, cast_to=object, options={"params": dict(query or {})})
        return self._object(answer)

    def _object(self, answer: object) -> _JSON:
        """Return a JSON object. Raises ServerUnavailable for any other answer, which another program may have sent."""
        if not isinstance(answer, dict):
            raise ServerUnavailable(f"what answers at {self.url} is no server of this kind; is the URL right?")
        return cast("_JSON", answer)

    @contextmanager
    def events(self, after: int) -> Iterator[Iterator[_JSON]]:
        """Connect to the stream of events after a position. Raises ServerUnavailable when the stream breaks."""
        from openai import Stream

        options: RequestOptions = {"params": {"after": after}, "headers": {"Accept": "text/event-stream"}}
        with (
            _translate_errors(self.url),
            self.sdk.get("/events", cast_to=object, options=options, stream=True, stream_cls=Stream[object]) as stream,
        ):
            yield map(self._object, stream)

    def pages(self, path: str, query: Mapping[str, Any], limit: int) -> "Entries":
        """Return the first `limit` entries of a list, from as many pages as necessary."""
        entries = Entries()
        after: dict[str, Any] = {}
        while len(entries) < limit:
            page = self.get(path, {**query, **after, "limit": min(limit - len(entries), _PAGE)})
            entries += page["data"]
            entries.has_more = bool(page["has_more"])
            if not page["has_more"] or not page["data"]:
                break
            after = {"after": page["data"][-1]["id"]}
        return entries

    def post(self, path: str, body: Mapping[str, Any] | None = None, timeout: float = _TIMEOUT, key: str = "") -> _JSON:
        """Post a JSON object. An idempotency key makes it safe to repeat the request: a new one where none is given."""
        with _translate_errors(self.url):
            options: RequestOptions = {"headers": {"Idempotency-Key": key or str(uuid.uuid4())}, "timeout": timeout}
            answer = self.sdk.post(path, cast_to=object, body=dict(body or {}), options=options)
        return self._object(answer)

    def delete(self, path: str) -> _JSON:
        with _translate_errors(self.url):
            answer = self.sdk.delete(path, cast_to=object)
        return self._object(answer)

    def upload(self, path: Path, purpose: "FilePurpose" = "batch", name: str = "", key: str = "") -> str:
        """Upload a file, under another name if one is given; return its id.

        The idempotency key is a new one where none is given.
        """
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        with _translate_errors(self.url), path.open("rb") as handle:
            file = (name or path.name, handle)
            sent = self.sdk.files.create(file=file, purpose=purpose, extra_headers=headers, timeout=_UPLOAD_TIMEOUT)
        return sent.id

    def upload_large(self, path: Path, purpose: "FilePurpose") -> str:
        """Upload a file, in parts where one request may be too small for it; return its id."""
        if path.stat().st_size <= _PART_BYTES:
            return self.upload(path, purpose)
        with _translate_errors(self.url):
            done = self.sdk.uploads.upload_file_chunked(file=path, mime_type=_BYTES, purpose=purpose)
        if done.file is None:
            raise CliError(f"{path} was not uploaded")
        return done.file.id

    def file_id(self, name: str, purpose: "FilePurpose") -> str:
        """Return the id of an uploaded file. Upload the file when `name` is a path."""
        return name if _is_file_id(name) else self.upload(Path(name), purpose)

    def complete(self, body: Mapping[str, Any]) -> _JSON:
        """Return the whole answer to a chat. Raises ModelStillLoading without waiting."""
        return self.post_once("/chat/completions", body)

    def post_once(self, path: str, body: Mapping[str, Any]) -> _JSON:
        """Post a JSON object, and not again where the answer is lost: each request may cost."""
        with _translate_errors(self.url):
            options: RequestOptions = {"timeout": ANSWER_TIMEOUT, "max_retries": 0}
            answer = self.sdk.post(path, cast_to=object, body=dict(body), options=options)
        return self._object(answer)

    def chat(self, body: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
        """Yield pieces of the answer to a chat as they arrive, each with the finish reason once it is known.

        Raises:
            ModelStillLoading: without waiting, before the first piece.
        """
        from openai import Stream
        from openai.types.chat import ChatCompletionChunk

        with _translate_errors(self.url):
            chunks = self.sdk.post(
                "/chat/completions",
                cast_to=ChatCompletionChunk,
                body={**body, "stream": True},
                options={"timeout": ANSWER_TIMEOUT, "max_retries": 0},
                stream=True,
                stream_cls=Stream[ChatCompletionChunk],
            )
            with chunks:
                for choice in (choice for chunk in chunks for choice in chunk.choices):
                    yield choice.delta.content or "", choice.finish_reason

    @contextmanager
    def content(self, file_id: str) -> Iterator[Iterator[bytes]]:
        """Yield the lines of a file as they arrive."""
        with (
            _translate_errors(self.url),
            self.sdk.files.with_streaming_response.content(file_id, timeout=_UPLOAD_TIMEOUT) as answer,
        ):
            yield _split_lines(answer.iter_bytes())

    @contextmanager
    def finished_lines(self, job_id: str) -> Iterator[Iterator[bytes]]:
        """Yield the lines that a job has finished so far. The SDK can stream only routes that it knows."""
        import urllib.request

        request = urllib.request.Request(f"{self.url}/v1/jobs/{job_id}/results?follow=false")  # noqa: S310 (http as given)
        request.add_header("Authorization", f"Bearer {self.sdk.api_key}")
        try:
            answer = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310
        except OSError as error:
            raise ServerUnavailable(f"the server at {self.url} gave no results: {error}") from error
        with answer:
            yield _split_lines(self._read_blocks(answer))

    def _read_blocks(self, answer: "HTTPResponse") -> Iterator[bytes]:
        """Read blocks: `http.client` reports a truncated answer only to `read1`, not when it reads lines."""
        from http.client import HTTPException

        try:
            yield from iter(partial(answer.read1, _READ), b"")
        except (HTTPException, OSError) as error:
            raise ServerUnavailable(f"the server at {self.url} broke off its answer") from error

    def download(self, file_id: str, path: Path) -> None:
        """Write the content of a file to `path`, as `fetch` does."""
        self.fetch(f"/files/{quote(file_id, safe='')}/content", path)

    def fetch(self, route: str, path: Path) -> None:
        """Write the bytes that the server has at `route` to `path`, which appears when it is complete.

        Repeat the download while the server is restarted. A device or a pipe (see `whole`) gets one attempt, because it
        would receive the beginning twice.

        Raises:
            ServerUnavailable: the server did not come back in time.
        """
        began = time.monotonic()
        while True:
            try:
                self._fetch(route, path)
            except ServerUnavailable as error:
                if time.monotonic() - began > self.timings.download_patience or not is_replaced(path):
                    raise
                say(f"{error}; trying again", err=True)
            else:
                return
            threading.Event().wait(self.timings.download_retry)

    def check_content(self, file_id: str) -> None:
        """Ask for the content of a file, and read none of it. Raises CliError where the server refuses it."""
        with _translate_errors(self.url), self.sdk.files.with_streaming_response.content(file_id):
            pass

    def _fetch(self, route: str, path: Path) -> None:
        options: RequestOptions = {"headers": {_RAW: "stream"}, "timeout": _UPLOAD_TIMEOUT}
        with whole(path) as out, _translate_errors(self.url):
            answer = cast("APIResponse[object]", self.sdk.get(route, cast_to=object, options=options))
            with closing(answer):
                out.writelines(answer.iter_bytes())


def require_files(names: Iterable[str], outcome: str) -> None:
    """Raise CliError, with the outcome, for a name that is neither a path here nor the id of an uploaded file."""
    for name in names:
        if not (_is_file_id(name) or Path(name).is_file()):
            raise CliError(f"{name} is neither a file here nor the id of an uploaded file; {outcome}")


def _is_file_id(name: str) -> bool:
    return name.startswith("file-") and not Path(name).exists()


def _split_lines(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Split at LF only. httpx would also split at U+2028, which answers may contain."""
    rest = b""
    for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        yield from lines
    if rest:
        yield rest
