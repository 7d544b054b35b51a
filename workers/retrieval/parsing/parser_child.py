"""The confined process that reads files until its parent has no more."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import BinaryIO

from workers.retrieval.parsing import parser_protocol, reading
from workers.retrieval.parsing.contract import Refused, invalid
from workers.sandbox.channel import Channel

Work = Callable[[parser_protocol.Ask, BinaryIO, BinaryIO], parser_protocol.Parsed]


def main(channel: Channel) -> None:
    serve(channel, reading.Reader().read)


def serve(channel: Channel, work: Work) -> None:
    channel.ready()
    while (received := channel.receive()) is not None:
        message, descriptors = received
        with ExitStack() as stack:
            file, tokenizer = (stack.enter_context(os.fdopen(one, "rb")) for one in descriptors)
            channel.send(answer(work, parser_protocol.decode_ask(message), file, tokenizer))


def answer(work: Work, ask: parser_protocol.Ask, file: BinaryIO, tokenizer: BinaryIO) -> bytes:
    """Encoded. The one boundary: whatever a library raises is a refusal."""
    try:
        encoded = parser_protocol.encode(work(ask, file, tokenizer))
        if len(encoded) > parser_protocol.largest_answer(ask.limits):
            raise invalid("The file has too much text.")
    except Refused as no:
        encoded = parser_protocol.encode(parser_protocol.Refusal(no.code, no.message))
    except MemoryError:
        limit = ask.limits.memory_bytes >> 20
        encoded = _refusal(f"The file could not be parsed within its limits of {limit} MiB of memory.")
    except BaseException:  # noqa: BLE001 (a Rust panic is no Exception; the parent replaces this process)
        encoded = _refusal("The file could not be parsed: it is damaged, or not what it says it is.")
    return encoded


def _refusal(message: str) -> bytes:
    return parser_protocol.encode(parser_protocol.Refusal("invalid_file", message))
