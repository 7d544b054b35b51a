"""Read the three files of a comparison: texts, queries, and judgements of which text answers which query.

Invalid input ends the command with file and line; nothing is skipped.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.errors import CliError

Judgements = dict[str, dict[str, int]]  # query → text → grade


@dataclass(frozen=True, slots=True)
class Text:
    id: str
    text: str
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files of a comparison. `queries` are those with judgements; `unjudged` counts the others."""

    corpus: Path
    indexes: dict[str, int]  # id of a text → its index in the corpus
    queries: list[Text]
    judgements: Judgements
    unjudged: int


def read(corpus: Path, queries: Path, judgements: Path) -> Inputs:
    """Read the three files. Raises CliError for invalid input."""
    indexes = {text.id: index for index, text in enumerate(texts(corpus))}
    read_queries = list(texts(queries))
    judged = _judgements(judgements)
    _known(judgements, "query", judged, {query.id for query in read_queries}, queries)
    _known(judgements, "text", {text for grades in judged.values() for text in grades}, indexes, corpus)
    relevant = {query: grades for query, grades in judged.items() if any(grade > 0 for grade in grades.values())}
    if not relevant:
        raise CliError(f"{judgements} names no text that answers a query")
    used = [query for query in read_queries if query.id in relevant]
    return Inputs(corpus, indexes, used, relevant, len(read_queries) - len(used))


def texts(path: Path) -> Iterator[Text]:
    """Yield texts from JSON Lines of `id`, `text` and optionally `language`, or BEIR's `_id`, `title` and `text`."""
    seen = set[str]()
    for where, line in _lines(path):
        text = _text(where, line)
        if text.id in seen:
            raise CliError(f"{where}: the id '{text.id}' was there before")
        seen.add(text.id)
        yield text
    if not seen:
        raise CliError(f"{path} is empty")


def _text(where: str, line: str) -> Text:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise CliError(f"{where} is no JSON object")
    name = row.get("id", row.get("_id"))
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if not isinstance(name, str) or not name:
        raise CliError(f"{where} has no 'id'")
    text, title, language = row.get("text"), row.get("title"), row.get("language")
    if not isinstance(text, str) or not isinstance(title, str | None):
        raise CliError(f"{where} has no 'text'" if not isinstance(text, str) else f"{where}: 'title' must be text")
    if not isinstance(language, str | None):
        raise CliError(f"{where}: 'language' must be text")
    whole = f"{title} {text}" if title else text
    if not whole.strip():
        raise CliError(f"{where}: its text is empty")
    return Text(name, whole, language or None)


def _judgements(path: Path) -> Judgements:
    """Read TREC's `query 0 text grade`, or BEIR's `query text grade` with or without a header."""
    judgements: Judgements = {}
    for number, (where, line) in enumerate(_lines(path)):
        cells = line.split("\t") if "\t" in line else line.split()
        if len(cells) not in (3, 4):
            raise CliError(f"{where} has {len(cells)} columns: expected 'query 0 text grade' or 'query text grade'")
        query, text, grade = cells[0].strip(), cells[-2].strip(), cells[-1].strip()
        if number == 0 and len(cells) == 3 and not _integer(grade):
            continue  # BEIR's headerer
        if not _integer(grade):
            raise CliError(f"{where}: the grade '{grade}' is not an integer")
        if text in judgements.setdefault(query, {}):
            raise CliError(f"{where}: the text '{text}' was judged for the query '{query}' before")
        judgements[query][text] = int(grade)
    if not judgements:
        raise CliError(f"{path} has no judgements")
    return judgements


def _integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _known(path: Path, what: str, named: Collection[str], there: Collection[str], file: Path) -> None:
    strange = sorted(name for name in named if name not in there)
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise CliError(f"{path} judges a {what} that {file} does not have: {', '.join(strange[:3])}{more}")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each line that is not blank."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}, line {number}", line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise CliError(f"{path} is not UTF-8") from error
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror}") from error


def by_language(queries: list[Text]) -> dict[str, list[str]]:
    """Return the ids of queries by language; queries without one are `not stated`. Empty if none has a language."""
    if not any(query.language for query in queries):
        return {}
    ids: dict[str, list[str]] = {}
    for query in queries:
        ids.setdefault(query.language or "not stated", []).append(query.id)
    return dict(sorted(ids.items()))
