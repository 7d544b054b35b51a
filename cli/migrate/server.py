"""A server that speaks OpenAI's API as a source. Only GETs are sent."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from cli.client.server import ANSWER_TIMEOUT, Server, ServerUnavailable
from cli.errors import CliError
from cli.migrate.outcomes import MigrationKind, MigrationOutcome, ReportRow
from cli.migrate.source import MAX_ITEMS, MAX_OBJECTS, Object, SourceFile, id_of
from jobs.errors import InvalidRequest
from jobs.platform.url_guard import check_url

_PAGE: Final = 100
#: Attempts of a request that meets a limit of rate, each after the time that the server names.
_RETRIES: Final = 10
#: OpenAI answers the routes of vector stores only with this header.
_HEADERS: Final = {"OpenAI-Beta": "assistants=v2"}


@contextmanager
def connect_source(url: str, key: str) -> Iterator[Server]:
    """Yield a client of the server at `url`. Raises CliError for a URL or a key that is not accepted."""
    try:
        check_url(url, allow_private=True)
    except InvalidRequest as error:
        raise CliError(f"--from: {error}") from None
    if not (key.isascii() and key.isprintable()):  # the library's error would quote the key
        raise CliError("the key has characters that no header takes")
    with Server(url.rstrip("/").removesuffix("/v1"), key) as server:
        server.sdk = server.sdk.with_options(max_retries=_RETRIES, timeout=ANSWER_TIMEOUT, default_headers=_HEADERS)
        server.get("/models")
        yield server


class ServerSource:
    """The objects of a server. What a GET does not give becomes a remark; the rest is read."""

    def __init__(self, server: Server) -> None:
        self.name = server.url
        self.server = server
        self._read: dict[str, list[Object]] = {}
        self._remarks: dict[tuple[MigrationKind, str], ReportRow] = {}

    def files(self) -> Iterator[SourceFile]:
        """Yield each file with its content or, where that cannot be downloaded, with the text of a vector store."""
        listed = self._list(MigrationKind.FILE, "/files")
        texts = {}
        for store in self.vector_stores():
            if store.get("status") == "expired":
                continue
            for attached in self.store_files(str(store.get("id"))):
                if attached.get("status") == "completed":
                    texts[str(attached.get("id"))] = str(store.get("id"))
        known = {file.get("id") for file in listed}
        deleted = [{"id": name, "filename": name, "purpose": "assistants"} for name in texts if name not in known]
        for file in [*listed, *deleted]:
            yield self._file(file, texts.get(str(file.get("id"))))

    def prompts(self) -> Iterator[Object]:
        for prompt in self._list(MigrationKind.PROMPT, "/prompts"):
            yield prompt | {"versions": self._list(MigrationKind.PROMPT, f"/prompts/{prompt.get('id')}/versions")}

    def evals(self) -> Iterator[Object]:
        return iter(self._list(MigrationKind.EVAL, "/evals"))

    def rows(self, eval_id: str) -> Iterator[Object]:  # noqa: ARG002 (they are in the items of the runs)
        return iter(())

    def runs(self, eval_id: str) -> Iterator[Object]:
        return iter(self._list(MigrationKind.EVAL_RUN, f"/evals/{eval_id}/runs"))

    def items(self, run: Object) -> Iterator[Object]:
        path = f"/evals/{id_of(run, 'eval_id')}/runs/{id_of(run)}/output_items"
        return entries(self.server, path, limit=MAX_ITEMS)

    def vector_stores(self) -> Iterator[Object]:
        return iter(self._list(MigrationKind.VECTOR_STORE, "/vector_stores"))

    def store_files(self, store_id: str) -> Iterator[Object]:
        return iter(self._list(MigrationKind.VECTOR_STORE, f"/vector_stores/{store_id}/files"))

    def fine_tuning_jobs(self) -> Iterator[Object]:
        return iter(self._list(MigrationKind.FINE_TUNING_JOB, "/fine_tuning/jobs"))

    def chat_completions(self) -> Iterator[Object]:
        return iter(self._list(MigrationKind.CHAT_COMPLETION, "/chat/completions"))

    def messages(self, completion_id: str) -> Iterator[Object]:
        return entries(self.server, f"/chat/completions/{completion_id}/messages")

    def remarks(self) -> Iterator[ReportRow]:
        return iter(self._remarks.values())

    def _list(self, kind: MigrationKind, path: str) -> list[Object]:
        """Return the entries of a list, which is read once. A list that is refused is empty, with a remark.

        Raises:
            ServerUnavailable: the server does not answer. Migrating once more reads what is missing.
        """
        if path not in self._read:
            self._read[path] = []
            try:
                self._read[path] += entries(self.server, path)
            except ServerUnavailable:
                raise
            except CliError as error:
                self._remarks[kind, path] = ReportRow(kind, path, None, MigrationOutcome.LOST, f"not readable: {error}")
        return self._read[path]

    def _file(self, file: Object, store_id: str | None) -> SourceFile:
        try:
            file_id = id_of(file)
            self.server.check_content(file_id)
        except ServerUnavailable:
            raise
        except CliError as error:
            if store_id is None:
                return SourceFile(file, None, f"its content is not there: {error}")
            name = f"{file.get('filename')}.txt"
            remark = f"it is its text, as the vector store {store_id} has it: its content cannot be downloaded"
            return SourceFile(file | {"filename": name}, partial(self._text, store_id, str(file["id"])), remark)
        return SourceFile(file, partial(self._content, file_id))

    @contextmanager
    def _content(self, file_id: str) -> Iterator[Path]:
        with TemporaryDirectory(prefix="nightmill-") as folder:
            path = Path(folder) / "content"
            self.server.download(file_id, path)
            yield path

    @contextmanager
    def _text(self, store_id: str, file_id: str) -> Iterator[Path]:
        """Yield a file with the text that a vector store has of a file."""
        parts = self.server.get(f"/vector_stores/{store_id}/files/{file_id}/content").get("data") or []
        with TemporaryDirectory(prefix="nightmill-") as folder:
            path = Path(folder) / "content.txt"
            path.write_text("\n".join(str(part.get("text") or "") for part in parts), encoding="utf-8")
            yield path


def entries(
    server: Server, path: str, query: Mapping[str, Any] | None = None, limit: int = MAX_OBJECTS
) -> Iterator[Object]:
    """Yield the entries of a list, page by page. Raises CliError for a list that never ends."""
    asked: Object = {**(query or {}), "limit": _PAGE}
    count = 0
    while True:
        page = server.get(path, asked)
        data = page.get("data")
        if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
            raise CliError(f"what {server.url} answers at {path} is not a list")
        yield from data
        count += len(data)
        if not page.get("has_more") or not data:
            return
        if count >= limit or data[-1].get("id") == asked.get("after"):
            raise CliError(f"the list at {path} of {server.url} is longer than {limit} entries")
        asked["after"] = data[-1].get("id")
