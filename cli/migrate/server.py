"""A server that speaks OpenAI's API as a source."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from cli.client.server import Server
from cli.errors import CliError
from cli.migrate.outcomes import Row
from cli.migrate.source import MAX_ITEMS, MAX_OBJECTS, Object, SourceFile, id_of

_PAGE: Final = 100


class ServerSource:
    """The evals of a server, with their runs and output items."""

    def __init__(self, server: Server) -> None:
        self.name = server.url
        self._server = server

    def files(self) -> Iterator[SourceFile]:
        return iter(())

    def prompts(self) -> Iterator[Object]:
        return iter(())

    def evals(self) -> Iterator[Object]:
        return entries(self._server, "/evals")

    def rows(self, eval_id: str) -> Iterator[Object]:  # noqa: ARG002 (they are in the items of the runs)
        return iter(())

    def runs(self, eval_id: str) -> Iterator[Object]:
        return entries(self._server, f"/evals/{eval_id}/runs")

    def items(self, run: Object) -> Iterator[Object]:
        path = f"/evals/{id_of(run, 'eval_id')}/runs/{id_of(run)}/output_items"
        return entries(self._server, path, limit=MAX_ITEMS)

    def vector_stores(self) -> Iterator[Object]:
        return iter(())

    def texts(self, store_id: str) -> Iterator[tuple[Object, str]]:  # noqa: ARG002
        return iter(())

    def fine_tuning_jobs(self) -> Iterator[Object]:
        return iter(())

    def chat_completions(self) -> Iterator[Object]:
        return iter(())

    def remarks(self) -> Iterator[Row]:
        return iter(())


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
