"""Count the wrong keys that each address sends, so that guessing is slowed down."""

import time
from collections import OrderedDict

from starlette.types import Scope

from jobs.errors import TooManyRequests

_ADDRESSES = 10_000
_MINUTE = 60.0


class WrongKeys:
    """The wrong keys and sign-in tokens of each address in the current minute, for one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def count(self, scope: Scope) -> None:
        """Count one wrong key of the request's address.

        Raises: TooManyRequests, beyond the limit.
        """
        address, at = (scope.get("client") or ("unknown", 0))[0], time.monotonic()
        since, count = self._counts.get(address, (at, 0))
        if at - since > _MINUTE:
            since, count = at, 0
        self._counts[address] = (since, count + 1)
        self._counts.move_to_end(address)
        if len(self._counts) > _ADDRESSES:
            self._counts.popitem(last=False)
        if count + 1 > self._limit:
            raise TooManyRequests("Too many requests with a wrong API key. Wait a minute.")
