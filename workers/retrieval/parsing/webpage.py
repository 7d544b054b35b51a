"""HTML: title, headings, paragraphs, lists, code as it is, tables as rows. Scripts, styles and menus are left out.

The tree is walked without recursion: pages nest as deep as they like.
"""

import re
from collections.abc import Iterator
from typing import Final

from selectolax.lexbor import LexborHTMLParser, LexborNode

from workers.retrieval.parsing.blocks import Block, Reading, first_date
from workers.retrieval.parsing.plain import table_row

_CHARSET: Final = re.compile(
    rb"<meta[^>]{0,500}?charset\s*=\s*[\"']?\s*([\w.:-]{2,40})"
    rb"|<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([\w.:-]{2,40})",
    re.IGNORECASE,
)
_SPACE: Final = re.compile(r"\s+")
_SKIPPED: Final = frozenset((
    "audio", "button", "canvas", "dialog", "head", "iframe", "map", "math", "nav", "noscript", "object", "script",
    "select", "style", "svg", "template", "video",
))  # fmt: skip
_INLINE: Final = frozenset((
    "-text", "a", "abbr", "acronym", "area", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em",
    "font", "i", "img", "input", "ins", "kbd", "label", "link", "mark", "meta", "meter", "output", "picture", "q",
    "rp", "rt", "ruby", "s", "samp", "small", "source", "span", "strike", "strong", "sub", "sup", "time", "tt", "u",
    "var", "wbr",
))  # fmt: skip
_HEADINGS: Final = {f"h{level}": level for level in range(1, 7)}
_LISTS: Final = frozenset({"ul", "ol", "menu", "dir"})
_BLOCKS_IN_TABLES: Final = "table, h1, h2, h3, pre, article, section"
_LANGUAGE: Final = re.compile(r"[A-Za-z]{2}(?![A-Za-z])")
_TIMES: Final = (
    "article:modified_time", "datemodified", "dcterms.modified", "last-modified",
    "article:published_time", "datepublished", "dcterms.issued", "dcterms.created", "dcterms.date", "dc.date", "date",
)  # fmt: skip
_INDENT: Final = 6  # levels of lists that are shown


def declared_charset(head: bytes) -> str | None:
    match = _CHARSET.search(head)
    return (match.group(1) or match.group(2)).decode("ascii") if match else None


def read(text: str) -> Reading:
    tree = LexborHTMLParser(text)
    title = tree.css_first("title")
    root = tree.css_first("html")
    language = _LANGUAGE.match((root.attributes.get("lang") or "") if root else "")
    return Reading(
        Walk().blocks(tree.body) if tree.body else iter(()),
        title.text() if title else None,
        language.group().lower() if language else None,
        _time(tree),
    )


class Walk:
    """Collect text until a tag ends the block. The stack holds pending nodes, and names of tags to close."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._heading = self._lists = 0
        self._bullet = False
        self._items: list[str] = []

    def blocks(self, body: LexborNode) -> Iterator[Block]:
        stack: list[LexborNode | str] = [body]
        while stack:
            node = stack.pop()
            if isinstance(node, str):
                yield from self._close(node)
            elif node.is_text_node:
                self._text.append(_SPACE.sub(" ", node.text_content or ""))
            elif node.is_element_node and not _is_noise(node):
                yield from self._open(node, stack)
        yield from self._flush()
        yield from self._flush_list()

    def _open(self, node: LexborNode, stack: list[LexborNode | str]) -> Iterator[Block]:
        tag = node.tag or ""
        if tag == "br":
            self._text.append("\n")
            return
        if tag not in _INLINE:
            yield from self._flush()
        if tag == "pre" or (tag == "table" and _is_data(node)):
            yield from self._flush_list()
            yield Block(_raw_text(node), "code") if tag == "pre" else Block(_rows(node), "table")
            return
        self._enter(tag)
        stack.append(tag)
        stack.extend(reversed(list(node.iter(include_text=True))))

    def _enter(self, tag: str) -> None:
        if tag in _HEADINGS:
            self._heading = _HEADINGS[tag]
        elif tag in _LISTS:
            self._lists += 1
        elif tag == "li":
            self._bullet = True

    def _close(self, tag: str) -> Iterator[Block]:
        if tag not in _INLINE:
            yield from self._flush()
        if tag in _HEADINGS:
            self._heading = 0
        elif tag in _LISTS:
            self._lists -= 1
            if self._lists == 0:
                yield from self._flush_list()

    def _flush(self) -> Iterator[Block]:
        lines = [" ".join(line.split()) for line in "".join(self._text).split("\n")]
        text = "\n".join(lines).strip()
        self._text.clear()
        if not text:
            return
        if self._heading:
            yield from self._flush_list()
            yield Block(text, "heading", self._heading)
        elif self._lists:
            indent = "  " * min(self._lists - 1, _INDENT)
            self._items.append(f"{indent}{'- ' if self._bullet else '  '}{text}")
            self._bullet = False
        else:
            yield Block(text)

    def _flush_list(self) -> Iterator[Block]:
        if self._items:
            yield Block("\n".join(self._items), "list")
            self._items.clear()


def _time(tree: LexborHTMLParser) -> str | None:
    """Return the time that the page states in its metadata, or the only one in its text."""
    dates = {
        (
            meta.attributes.get("property") or meta.attributes.get("name") or meta.attributes.get("itemprop") or ""
        ).lower(): meta.attributes.get("content")
        for meta in reversed(tree.css("meta[content]"))
    }
    times = tree.css("time[datetime]")
    marked = [time for time in times if {"pubdate", "itemprop"} & time.attributes.keys()]
    shown = [time.attributes.get("datetime") for time in (marked[:1] or (times if len(times) == 1 else []))]
    return first_date(*map(dates.get, _TIMES), *shown)


def _is_noise(node: LexborNode) -> bool:
    tag = node.tag
    if tag in _SKIPPED:
        return True
    if tag in _INLINE:
        return False
    attributes = node.attributes
    return "hidden" in attributes or attributes.get("role") == "navigation" or attributes.get("aria-hidden") == "true"


def _raw_text(pre: LexborNode) -> str:
    parts = ("\n" if node.tag == "br" else node.text_content for node in pre.traverse(include_text=True))
    return "".join(part or "" for part in parts)


def _is_data(table: LexborNode) -> bool:
    """Tell whether a table holds data and does not only lay out the page."""
    return all(block.mem_id == table.mem_id for block in table.css(_BLOCKS_IN_TABLES))


def _rows(table: LexborNode) -> str:
    """Return the caption of a table, then a line for each row."""
    lines = [caption.text() for caption in table.css("caption")]
    lines += [table_row([cell.text(separator=" ") for cell in line.css("td, th")]) for line in table.css("tr")]
    return "\n".join(line for line in lines if line.strip(" |"))
