"""A reader of the feed of events that goes on from its cursor, whatever is killed meanwhile."""

import threading
from collections.abc import Iterator
from typing import Any, cast

from openai import OpenAI

from tests.chaos.load import Client

_EVERY = 0.5  # seconds
_LIMIT = 20  # events of a page


class FeedReader(threading.Thread):
    """Reads until it is stopped; `violations` then says whether it had every event once, in the order of the feed."""

    def __init__(self, client: Client) -> None:
        super().__init__(name="feed", daemon=True)
        self._client = client
        self._over = threading.Event()
        self.read: list[tuple[int, str]] = []  # position and id

    def run(self) -> None:
        while not self._over.wait(_EVERY):
            self.look()

    def look(self) -> None:
        """Read a page behind the last event, if the server answers."""
        last = self.read[-1][0] if self.read else 0
        self.read += self._client.look(lambda sdk: _page(sdk, last)) or []

    def stop(self) -> None:
        self._over.set()
        self.join(30)

    def violations(self) -> Iterator[str]:
        """Read the whole feed anew, and compare."""
        self.stop()
        whole: list[tuple[int, str]] = []
        while page := _page(self._client.sdk, whole[-1][0] if whole else 0):
            whole += page
        if [position for position, _ in whole] != list(range(1, len(whole) + 1)):
            yield f"the feed has gaps: {[position for position, _ in whole]}"
        if not self.read or self.read != whole[: len(self.read)]:
            yield f"the feed was read as {self.read}, and is {whole}"


def _page(sdk: OpenAI, after: int) -> list[tuple[int, str]]:
    page = cast(Any, sdk.get(f"/events?after={after}&limit={_LIMIT}", cast_to=object))
    return [(event["position"], event["id"]) for event in page["data"]]
