"""What the child does with one file: find out what it is, read it, cut it. Within its limits."""

import os
from pathlib import Path
from typing import BinaryIO, Final

from jobs.retrieval.documents import Document
from workers.retrieval.parsing import archive, blocks, chunking, languages, office, parser_protocol, sniffing
from workers.retrieval.parsing.contract import Cutting, Limits, Refused, invalid
from workers.retrieval.parsing.tokens import Tokens
from workers.sandbox import resource_limits as resources

_TOKENIZERS: Final = 4  # kept: loading one takes up to a second


class Reader:
    """Of any number of files, one after the other."""

    def __init__(self) -> None:
        if office.installed():
            office.load()  # its 100 MiB of address space are not the first file's
        languages.load()
        self._tokens: dict[tuple[int, int, int], Tokens] = {}
        self._rest = resources.address_space()

    def read(self, ask: parser_protocol.Ask, file: BinaryIO, tokenizer: BinaryIO) -> parser_protocol.Parsed:
        """Raises Refused, and whatever a library raises."""
        cutting = Cutting(Path(), ask.max_tokens, ask.overlap, ask.strategy)  # the tokenizer is open already
        tokens = self._tokenizer(tokenizer)
        resources.allow(ask.limits.memory_bytes, ask.limits.cpu_seconds)
        try:
            document = read(_bytes(file, ask.limits), ask.filename, tokens, cutting, ask.limits)
        finally:
            resources.relax()
        return parser_protocol.Parsed(document, resources.address_space() - self._rest)

    def _tokenizer(self, file: BinaryIO) -> Tokens:
        try:
            found = os.fstat(file.fileno())
            key = (found.st_dev, found.st_ino, found.st_mtime_ns)
            if key not in self._tokens:
                if len(self._tokens) >= _TOKENIZERS:
                    self._tokens.clear()
                self._tokens[key] = Tokens.read(_whole(file))
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


def _bytes(file: BinaryIO, limits: Limits) -> bytes:
    largest = archive.EXPANSION * limits.text_bytes
    try:
        if os.fstat(file.fileno()).st_size > largest:
            raise invalid(f"The file has more than {largest >> 20} MiB.")
        return _whole(file)
    except OSError as error:
        raise Refused("server_error", "The stored file could not be read.") from error


def _whole(file: BinaryIO) -> bytes:
    """Read from the beginning: the descriptor's offset is shared with a child that may have died over this file."""
    file.seek(0)
    return file.read()
