"""The objects to bring over, in OpenAI's shapes: what every source gives, whatever it reads them from."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from cli.errors import CliError
from cli.migrate.outcomes import ReportRow
from cli.terminal import visible

#: Objects of a kind, and output items of a run, that a source gives at most.
MAX_OBJECTS: Final = 10_000
MAX_ITEMS: Final = 1_000_000

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,254}")

Object = dict[str, Any]
#: Gives the path of a file as long as the context is open.
Opener = Callable[[], AbstractContextManager[Path]]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file: OpenAI's object of it, and its content; None where the source has none.

    `remark` says in what the content differs, or why there is none.
    """

    object: Object
    content: Opener | None
    remark: str = ""


class MigrationSource(Protocol):
    """A source of objects: saved files, or a server. `name` tells the reader of a report which."""

    name: str

    def files(self) -> Iterator[SourceFile]: ...

    def prompts(self) -> Iterator[Object]:
        """Yield prompts, each with its `versions`. The id is `openai_prompt_id`, or `id`."""
        ...

    def evals(self) -> Iterator[Object]: ...

    def rows(self, eval_id: str) -> Iterator[Object]:
        """Yield the items that an eval was run on, where the source keeps them beside its runs."""
        ...

    def runs(self, eval_id: str) -> Iterator[Object]: ...

    def items(self, run: Object) -> Iterator[Object]:
        """Yield the output items of a run."""
        ...

    def vector_stores(self) -> Iterator[Object]: ...

    def store_files(self, store_id: str) -> Iterator[Object]:
        """Yield the files of a vector store, as the store shows them."""
        ...

    def fine_tuning_jobs(self) -> Iterator[Object]: ...

    def chat_completions(self) -> Iterator[Object]: ...

    def messages(self, completion_id: str) -> Iterator[Object]:
        """Yield the messages that a stored chat completion answered."""
        ...

    def remarks(self) -> Iterator[ReportRow]:
        """Yield a row for what could not be read. Complete when all else was read."""
        ...


def id_of(value: Object, name: str = "id") -> str:
    """Return a field that is an id. Raises CliError."""
    text = value.get(name)
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise CliError(f"an object has no '{name}', or one that is not an id: {visible(str(text))[:80]}")
    return text
