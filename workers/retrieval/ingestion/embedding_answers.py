"""What an engine says that was asked for vectors: these, or why there are none.

401 402, 404 of the model   no text's fault: the shard waits, as for an engine that takes nothing now
400 403 413 422             may be about one of the texts: each is asked for alone
any other 4xx               is about none of them: what it says is what their files failed for
"""

import base64
from typing import Any, Final

import msgspec
import numpy as np

from workers.engines.port import Answer
from workers.vectors.base import Vector

_CLOSED: Final = frozenset({401, 402})
_OF_A_TEXT: Final = frozenset({400, 403, 413, 422})
_LONGEST: Final = 500  # characters of what an engine says


class Unusable(Exception):
    """The engine's answer holds no vectors. `said`: why, if it says that."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.status = answer.status
        error = _error_of(answer.body) if answer.status >= 400 else {}
        self.said = str(error.get("message") or "").replace("\0", " ")[:_LONGEST].strip()  # no NUL in PostgreSQL
        self._code = str(error.get("code"))

    @property
    def closed(self) -> bool:
        """Whether whatever is asked for is refused, until somebody sees to it."""
        of_the_model = "model" in f"{self._code} {self.said}".casefold()
        return self.status in _CLOSED or (self.status == 404 and of_the_model)

    @property
    def of_a_text(self) -> bool:
        """Whether others that were asked for with it may come if it is left out."""
        return not 400 <= self.status < 500 or self.status in _OF_A_TEXT


def read_vectors(answer: Answer) -> list[Vector]:
    """The vectors of an answer, in the order of the texts. Raises Unusable."""
    if answer.status >= 400:
        raise Unusable(answer)
    try:
        data = sorted(msgspec.json.decode(answer.body)["data"], key=lambda one: one["index"])
        return [_vector(one["embedding"]) for one in data]
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise Unusable(answer) from error


def _vector(value: Any) -> Vector:
    """Of length 1, whatever the engine gave: some endpoints know no base64, some don't normalise. Raises ValueError."""
    found = np.frombuffer(base64.b64decode(value), "<f4") if isinstance(value, str) else np.asarray(value, "f4")
    length = float(np.linalg.norm(found))
    if not len(found) or not np.isfinite(length):
        raise ValueError(f"a vector of {len(found)} numbers and length {length}")
    return (found / max(length, 1e-12)).astype(np.float32)


def _error_of(body: bytes) -> dict[str, Any]:
    try:
        said = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return {}
    error = said.get("error") if isinstance(said, dict) else None
    return error if isinstance(error, dict) else {}
