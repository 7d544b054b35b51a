"""Run the confined process that turns files into documents until its parent has no more.

bytes ──▶ %PDF that opens, a picture, a ZIP of Office, RTF ──▶ that, whatever its name
  └─ no ─▶ decode ──▶ <html, headers of mail, {…} ──▶ that
              │                └─ no ─▶ by name: .csv .md .py … ──▶ else plain text
              └─ no text: refused

blocks of that format ──▶ laid out as one text ──▶ cut into chunks or sentences ──▶ their languages

The content decides the format first; the name decides where content cannot (CSV or prose, Markdown or text).
"""

import codecs
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePath
from typing import BinaryIO, Final

import msgspec

from jobs.retrieval.documents import Chunk, Document
from workers.retrieval.parsing import blocks, chunking, contract, markdown, office, pdf, plain, webpage
from workers.retrieval.parsing.blocks import Reading
from workers.retrieval.parsing.chunking import Tokens
from workers.retrieval.parsing.contract import Cutting, FileRefused, ParserLimits, invalid_file, no_text
from workers.retrieval.parsing.languages import language_of, load_languages
from workers.sandbox import resource_limits as resources
from workers.sandbox.channel import Channel

Work = Callable[[contract.Ask, BinaryIO, BinaryIO], contract.Parsed]


def main(channel: Channel) -> None:
    serve(channel, Reader().read)


def serve(channel: Channel, work: Work) -> None:
    channel.ready()
    while (received := channel.receive()) is not None:
        message, descriptors = received
        with ExitStack() as stack:
            file, tokenizer = (stack.enter_context(os.fdopen(descriptor, "rb")) for descriptor in descriptors)
            channel.send(answer(work, contract.decode_ask(message), file, tokenizer))


def answer(work: Work, ask: contract.Ask, file: BinaryIO, tokenizer: BinaryIO) -> bytes:
    """Return the encoded answer; every exception of a library becomes a refusal."""
    try:
        encoded = contract.encode(work(ask, file, tokenizer))
        if len(encoded) > contract.largest_answer(ask.limits):
            raise invalid_file("The file has too much text.")
    except FileRefused as no:
        encoded = contract.encode(contract.Refusal(no.code, no.message))
    except MemoryError:
        limit = ask.limits.memory_bytes >> 20
        encoded = _refusal(f"The file could not be parsed within its limits of {limit} MiB of memory.")
    except BaseException:  # noqa: BLE001 (a Rust panic is no Exception; the parent replaces this process)
        encoded = _refusal("The file could not be parsed: it is damaged, or not what it says it is.")
    return encoded


def _refusal(message: str) -> bytes:
    return contract.encode(contract.Refusal("invalid_file", message))


# ── one file ──

_TOKENIZERS: Final = 4  # cached: loading one takes up to a second


class Reader:
    """Read any number of files, one after the other."""

    def __init__(self) -> None:
        if office.is_installed():
            office.load()  # so that its 100 MiB of address space do not count for the first file
        load_languages()
        self._tokens: dict[tuple[int, int, int], Tokens] = {}
        self._rest = resources.address_space()

    def read(self, ask: contract.Ask, file: BinaryIO, tokenizer: BinaryIO) -> contract.Parsed:
        """Read one file within the limits of `ask`. Raises Refused, and whatever a library raises."""
        cutting = Cutting(Path(), ask.max_tokens, ask.overlap, ask.strategy)  # the tokenizer is open already
        tokens = self._tokenizer(tokenizer)
        resources.allow(ask.limits.memory_bytes, ask.limits.cpu_seconds)
        try:
            document = read_document(_read_bytes(file, ask.limits), ask.filename, tokens, cutting, ask.limits)
        finally:
            resources.relax()
        return contract.Parsed(document, resources.address_space() - self._rest)

    def _tokenizer(self, file: BinaryIO) -> Tokens:
        try:
            status = os.fstat(file.fileno())
            key = (status.st_dev, status.st_ino, status.st_mtime_ns)
            if key not in self._tokens:
                if len(self._tokens) >= _TOKENIZERS:
                    self._tokens.clear()
                self._tokens[key] = Tokens.read(_read_whole(file))
        except Exception as error:  # the library raises nothing narrower
            raise FileRefused("server_error", "The embedding model's tokenizer could not be read.") from error
        return self._tokens[key]


def read_document(data: bytes, filename: str, tokens: Tokens, cutting: Cutting, limits: ParserLimits) -> Document:
    """Return the document that a file's bytes are. Raises Refused."""
    reading = read_format(data, filename, limits)
    laid = blocks.lay(reading, limits)
    by_meaning = cutting.strategy == "semantic"
    cut = (chunking.sentences if by_meaning else chunking.chunks)(laid, tokens, cutting, limits)
    language, pieces = mark_languages(cut, laid.text, reading.language)
    chunks, sentences = ((), pieces) if by_meaning else (pieces, ())
    return Document(laid.text, chunks, laid.title, language, sentences, reading.time, laid.unread)


def _read_bytes(file: BinaryIO, limits: ParserLimits) -> bytes:
    largest = office.EXPANSION * limits.text_bytes
    try:
        if os.fstat(file.fileno()).st_size > largest:
            raise invalid_file(f"The file has more than {largest >> 20} MiB.")
        return _read_whole(file)
    except OSError as error:
        raise FileRefused("server_error", "The stored file could not be read.") from error


def _read_whole(file: BinaryIO) -> bytes:
    """Read from the beginning: a child that died over this file may have moved the shared offset."""
    file.seek(0)
    return file.read()


# ── formats ──

_HEAD: Final = 4096
_PDF: Final = b"%PDF-"
_PDF_WITHIN: Final = 1024  # bytes that may precede the mark
#: Nothing is tried twice (`*+`, `(?>`): a file of comments would take for ever.
_HTML: Final = re.compile(
    r"\s*+(?:(?><\?xml[^>]*>|<!--.*?-->)\s*+)*+<(?:!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL
)
_TAG: Final = re.compile(
    r"<(?:!doctype|head|body|div|p|h[1-6]|table|ul|ol|span|a|br|title|meta|article)\b", re.IGNORECASE
)
_HTML_NAMES: Final = frozenset({".html", ".htm", ".xhtml"})
_CODE_NAMES: Final = frozenset((
    ".ada", ".adb", ".asm", ".awk", ".bash", ".bat", ".c", ".cc", ".cfg", ".clj", ".cmake", ".conf", ".cpp", ".cs",
    ".css", ".cu", ".cxx", ".d", ".dart", ".diff", ".dockerfile", ".el", ".erl", ".ex", ".exs", ".f", ".f90", ".fs",
    ".gd", ".go", ".gradle", ".graphql", ".groovy", ".h", ".hcl", ".hh", ".hpp", ".hs", ".hxx", ".ini", ".ipynb",
    ".java", ".jl", ".js", ".jsx", ".kt", ".kts", ".less", ".lisp", ".lua", ".m", ".make", ".mjs", ".mk", ".ml",
    ".mm", ".nim", ".nix", ".pas", ".patch", ".php", ".pl", ".pm", ".proto", ".ps1", ".pxd", ".py", ".pyi", ".pyx",
    ".r", ".rb", ".rs", ".s", ".sass", ".scala", ".scss", ".sh", ".sol", ".sql", ".svelte", ".swift", ".tcl", ".tf",
    ".toml", ".ts", ".tsx", ".v", ".vb", ".vhd", ".vue", ".xml", ".xsd", ".xsl", ".yaml", ".yml", ".zig", ".zsh",
))  # fmt: skip
_CODE_FILES: Final = frozenset({"dockerfile", "makefile", "jenkinsfile", "vagrantfile", "rakefile", "gemfile"})
_BY_NAME: Final[dict[str, Callable[[str], Reading]]] = {
    ".md": markdown.read,
    ".markdown": markdown.read,
    ".mdx": markdown.read,
    ".csv": plain.read_table,
    ".tsv": plain.read_table,
    ".jsonl": plain.read_lines,
    ".ndjson": plain.read_lines,
}


def read_format(data: bytes, filename: str, limits: ParserLimits) -> Reading:
    """Recognise the format of a file, and return its blocks. Raises Refused."""
    if not data.strip():
        raise no_text()
    reading = _read_pdf(data, limits) if _PDF in data[:_PDF_WITHIN] else None
    if reading is not None:
        return reading
    kind = office.kind(data, filename)
    if kind is not None:
        return office.read(data, kind, limits)
    return read_text(plain.decode(data, webpage.declared_charset(data[:_HEAD])), filename)


def _read_pdf(data: bytes, limits: ParserLimits) -> Reading | None:
    """Return None for a text that only mentions the mark of PDF. Raises Refused."""
    try:
        return pdf.read(data, limits)
    except pdf.DamagedPdf:
        if data.removeprefix(codecs.BOM_UTF8).lstrip().startswith(_PDF) or not plain.is_text(data):
            raise
        return None


def read_text(text: str, filename: str) -> Reading:
    suffix = PurePath(filename.lower()).suffix
    if _is_html(text, suffix):
        return webpage.read(text)
    if plain.is_json(text):
        return plain.read_json(text)
    if suffix in _BY_NAME:
        return _BY_NAME[suffix](text)
    if suffix in _CODE_NAMES or PurePath(filename.lower()).name in _CODE_FILES:
        return plain.read_code(text)
    return plain.read(text)


def _is_html(text: str, suffix: str) -> bool:
    head = text[:_HEAD]
    return _HTML.match(head) is not None or (suffix in _HTML_NAMES and _TAG.search(text) is not None)


# ── languages ──

SAMPLE: Final = 20_000  # characters of a document whose pieces are all short
_MIN_CHARACTERS: Final = 100  # characters: a shorter piece gets the document's language


def mark_languages(pieces: Sequence[Chunk], text: str, declared: str | None) -> tuple[str | None, tuple[Chunk, ...]]:
    """Return the language of most of the text, and the pieces, of which those in another language name it.

    Letters go before what is declared: templates declare English whatever is written into them.
    """
    own = [
        language_of(text[piece.start : piece.end]) if piece.end - piece.start >= _MIN_CHARACTERS else None
        for piece in pieces
    ]
    sizes = Counter[str]()
    for piece, name in zip(pieces, own, strict=True):
        if name is not None:
            sizes[name] += piece.end - piece.start
    language = max(sizes, key=lambda name: (sizes[name], name)) if sizes else language_of(text[:SAMPLE]) or declared
    both = zip(pieces, own, strict=True)
    return language, tuple(_set_language(piece, None if name == language else name) for piece, name in both)


def _set_language(piece: Chunk, language: str | None) -> Chunk:
    return piece if language is None else msgspec.structs.replace(piece, language=language)
