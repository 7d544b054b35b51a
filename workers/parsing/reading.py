"""What the child does with one file: find out what it is, read it, cut it. Within its limits."""

import importlib
from pathlib import Path
from typing import Final

from jobs.documents import Document
from workers.parsing import archive, blocks, chunking, languages, office, sandbox, sniffing, wire
from workers.parsing.terms import Cutting, Limits, Refused, invalid
from workers.parsing.tokens import Tokens

_TOKENIZERS: Final = 4  # kept: loading one takes up to a second


class Reader:
    """Of any number of files, one after the other."""

    def __init__(self) -> None:
        if office.installed():
            importlib.import_module("kreuzberg")  # its 100 MiB of address space are not the first file's
        languages.load()
        self._tokens: dict[tuple[str, int], Tokens] = {}
        self._rest = sandbox.address_space()

    def read(self, ask: wire.Ask) -> wire.Parsed:
        """Raises Refused, and whatever a library raises."""
        cutting = Cutting(Path(ask.tokenizer), ask.max_tokens, ask.overlap, ask.strategy)
        tokens = self._tokenizer(cutting.tokenizer)
        sandbox.allow(ask.limits)
        try:
            document = read(_bytes(Path(ask.path), ask.limits), ask.filename, tokens, cutting, ask.limits)
        finally:
            sandbox.relax()
        return wire.Parsed(document, sandbox.address_space() - self._rest)

    def _tokenizer(self, path: Path) -> Tokens:
        try:
            key = (str(path), path.stat().st_mtime_ns)
            if key not in self._tokens:
                if len(self._tokens) >= _TOKENIZERS:
                    self._tokens.clear()
                self._tokens[key] = Tokens.load(path)
        except Exception as error:
            raise Refused("server_error", "The embedding model's tokenizer could not be read.") from error
        return self._tokens[key]


def read(data: bytes, filename: str, tokens: Tokens, cutting: Cutting, limits: Limits) -> Document:
    """Raises Refused."""
    reading = sniffing.read(data, filename, limits)
    laid = blocks.lay(reading, limits)
    by_meaning = cutting.strategy == "semantic"
    cut = (chunking.sentences if by_meaning else chunking.chunks)(laid, tokens, cutting, limits)
    language, pieces = languages.marked(cut, laid.text, reading.language)
    chunks, sentences = ((), pieces) if by_meaning else (pieces, ())
    return Document(laid.text, chunks, laid.title, language, sentences, reading.time, laid.unread)


def _bytes(path: Path, limits: Limits) -> bytes:
    largest = archive.EXPANSION * limits.text_bytes
    try:
        if path.stat().st_size > largest:
            raise invalid(f"The file has more than {largest >> 20} MiB.")
        return path.read_bytes()
    except OSError as error:
        raise Refused("server_error", "The stored file could not be read.") from error
