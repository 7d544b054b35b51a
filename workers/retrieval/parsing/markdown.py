"""Split Markdown into blocks, with its text unchanged.

One pass, line by line; CommonMark's rules for nesting are not needed to find headings, fences, tables and lists.
"""

import re
from collections.abc import Iterator
from typing import Final

from workers.retrieval.parsing.blocks import Block, Kind, Reading, first_date

_ATX: Final = re.compile(r" {0,3}(#{1,6})(?=[ \t]|\Z)")
_SETEXT: Final = re.compile(r" {0,3}(=+|-{2,})[ \t]*\Z")
_FENCE: Final = re.compile(r" {0,3}(`{3,}|~{3,})")
_LIST: Final = re.compile(r"\s*(?:[-*+]|\d{1,9}[.)])[ \t]+\S")
#: Possessive, as no line may cost more than it is long.
_DELIMITER_ROW: Final = re.compile(r"[ \t]*+\|?+[ \t]*+:?-++:?[ \t]*+(?:\|[ \t]*+:?-++:?[ \t]*+)*+\|?[ \t]*\Z")
_FRONT_TIMES: Final = ("lastmod", "updated", "date")
_FRONT_FACT: Final = re.compile(r"^(title|lastmod|updated|date):(.*)$", re.MULTILINE)
_MARKUP: Final = re.compile(r"[*_`]+|\[([^\]]*)\]\([^)]*\)")
_FRONT_LINES: Final = 200
_NAME_CHARACTERS: Final = 1000


def read(text: str) -> Reading:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    front = _front_matter(lines)
    metadata: dict[str, str] = {}
    for name, value in _FRONT_FACT.findall("\n".join(lines[:front])):
        metadata.setdefault(name, value.strip(" \t'\""))
    time = first_date(*map(metadata.get, _FRONT_TIMES))
    return Reading(Scanner(lines[front:]).blocks(), metadata.get("title"), time=time)


class Scanner:
    """Collect lines until one of another kind follows."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self._held: list[str] = []
        self._kind: Kind = "paragraph"

    def blocks(self) -> Iterator[Block]:
        at = 0
        while at < len(self._lines):
            line = self._lines[at]
            fence = _FENCE.match(line)
            if fence:
                yield from self._flush()
                end = self._fence_end(at, fence.group(1))
                yield Block("\n".join(self._lines[at:end]), "code")
                at = end
                continue
            yield from self._line(at, line)
            at += 1
        yield from self._flush()

    def _line(self, at: int, line: str) -> Iterator[Block]:
        heading = _ATX.match(line)
        underline = _SETEXT.match(line) if self._held and self._kind == "paragraph" else None
        if heading:
            yield from self._flush()
            yield _heading(line, len(heading.group(1)), _without_hashes(line[heading.end() :]))
        elif underline:
            text = "\n".join(self._held)
            self._held.clear()
            yield _heading(f"{text}\n{line}", 1 if line.lstrip().startswith("=") else 2, text)
        elif not line.strip():
            yield from self._flush()
        else:
            yield from self._hold(at, line)

    def _hold(self, at: int, line: str) -> Iterator[Block]:
        kind = self._kind_of(at, line)
        if kind != self._kind:
            yield from self._flush()
            self._kind = kind
        self._held.append(line)

    def _kind_of(self, at: int, line: str) -> Kind:
        """Return the kind of a line; a line that is nothing by itself continues the block before."""
        if _LIST.match(line):
            return "list"
        following = self._lines[at + 1] if at + 1 < len(self._lines) else ""
        if "|" in line and "|" in following and _DELIMITER_ROW.match(following):
            return "table"
        if self._held and (self._kind == "list" or "|" in line):
            return self._kind
        return "paragraph"

    def _fence_end(self, start: int, mark: str) -> int:
        for at in range(start + 1, len(self._lines)):
            closing = self._lines[at].strip()
            if len(closing) >= len(mark) and not closing.strip(mark[0]):
                return at + 1
        return len(self._lines)

    def _flush(self) -> Iterator[Block]:
        if self._held:
            yield Block("\n".join(self._held), self._kind)
        self._held.clear()
        self._kind = "paragraph"


def _heading(text: str, level: int, name: str) -> Block:
    return Block(text, "heading", level, name=_MARKUP.sub(r"\1", name[:_NAME_CHARACTERS]) or text)


def _without_hashes(name: str) -> str:
    """Return a heading without the hashes that may close it: `## Name ##`."""
    name = name.strip()
    stripped = name.rstrip("#")
    return stripped.rstrip() if stripped != name and (not stripped or stripped[-1] in " \t") else name


def _front_matter(lines: list[str]) -> int:
    """Return the number of lines of front matter."""
    if lines[0].rstrip() != "---":
        return 0
    for at, line in enumerate(lines[1:_FRONT_LINES], 1):
        if line.rstrip() in ("---", "..."):
            return at + 1
    return 0
