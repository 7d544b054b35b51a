"""The chunks of streams that Redis holds because their clients have not read them, and when these are too many.

Of a stream that can be resumed, chunks that were read stay there for a while. They are counted too.
"""

from collections import deque
from dataclasses import dataclass, field

from jobs.errors import BrokerFull
from jobs.inference.admission import BLOCK
from jobs.inference.broker_memory import FULL, UNREAD_WHEN_FULL
from jobs.inference.interactive import AT_ONCE, BEHIND, BEHIND_PART, Question
from workers.engines.port import Answer, refusal

NO_MEMORY = refusal(503, BrokerFull().message, code=FULL)
TOO_SLOW = refusal(408, "The stream was read too slowly.", code="client_too_slow")


@dataclass(slots=True)
class _Held:
    """What Redis holds of a stream: the number of its pieces, the bytes of each, oldest first, and their sum."""

    length: int = 0
    sizes: deque[int] = field(default_factory=deque)
    total: int = 0
    counted: int = 0


class Unread:
    """The streams that one worker answers. `chunks` and `size` (bytes) bound each of them."""

    def __init__(self, chunks: int, size: int) -> None:
        self._chunks, self.size = chunks, size
        self._held: dict[str, _Held] = {}

    def count(self, question_id: str, size: int, length: int) -> None:
        """Count a piece of `size` bytes, with which the stream has `length` pieces. Clients drop the oldest."""
        held = self._held.setdefault(question_id, _Held())
        held.sizes.append(size)
        held.total += size
        held.length = length
        while len(held.sizes) > length:
            held.total -= held.sizes.popleft()

    def held(self, question_id: str) -> int:
        """Return the bytes of a stream that Redis holds, 0 where nothing of it was counted."""
        return held.total if (held := self._held.get(question_id)) else 0

    def uncounted(self, question: Question) -> bool:
        """Return whether more than a block of a stream is not counted to its project, and take that for counted now.

        One that can be resumed is counted as a whole when it is admitted.
        """
        held = self._held[question.id]
        if question.linger or held.total <= held.counted + BLOCK:
            return False
        held.counted += BLOCK
        return True

    def refusal(self, question: Question, *, is_full: bool) -> Answer | None:
        """Return why a stream is given up, None if it goes on. `is_full`: whether Redis has no memory to spare."""
        held = self._held[question.id]
        chunks = self._chunks + (BEHIND + AT_ONCE if question.linger else 0)
        if held.length > chunks or held.total > self.size:
            return TOO_SLOW
        behind = self.size // BEHIND_PART if question.linger else 0
        return NO_MEMORY if is_full and held.total > behind + UNREAD_WHEN_FULL else None

    def forget(self, question_id: str) -> None:
        """Count a request that has been answered no more."""
        self._held.pop(question_id, None)
