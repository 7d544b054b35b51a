"""Name the languages of texts in a child process, which loads the model of 75 MB.

It is run as `python -m workers.monitoring.language_detection`.

the beginning of a text on each line, as JSON ─stdin─▶ child ─stdout─▶ a language or null for each
"""

import sys
from collections.abc import Sequence
from typing import Final

import msgspec

from jobs.platform import children
from jobs.platform.children import ChildLimits

MODULE: Final = "workers.monitoring.language_detection"
#: Characters of a text: more would rarely make the language more certain.
_MAX_CHARACTERS: Final = 600
#: 2,000 texts take a second.
_LIMITS: Final = ChildLimits(seconds=120, cpu_seconds=60, memory_bytes=2 << 30)


def detect(texts: Sequence[str]) -> list[str | None]:
    """Return the language of each text; None where that is not certain. Raises: ChildFailed."""
    beginnings = (msgspec.json.encode(text[:_MAX_CHARACTERS]) + b"\n" for text in texts)
    return msgspec.json.decode(children.run(MODULE, beginnings, _LIMITS), type=list[str | None])


def main() -> None:
    """Name the languages of the texts of standard input."""
    from workers.retrieval.parsing.languages import language_of  # loads numpy, which the parent needs no second time

    texts = map(msgspec.json.Decoder(str).decode, sys.stdin.buffer)
    sys.stdout.buffer.write(msgspec.json.encode([language_of(text) for text in texts]))


if __name__ == "__main__":
    main()
