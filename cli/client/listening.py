"""Follow the events of a project, and post each to a URL of the user as a webhook would post it.

    GET /v1/events (SSE) ──▶ `follow_events` ──▶ `Forwarder` ──signed POST──▶ http://localhost:3000/webhooks

The server opens no connection to the user's machine, so neither an endpoint nor a setting of the server is needed.
"""

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from cli.client.server import Server, ServerUnavailable
from cli.errors import CliError
from cli.up.effective import effective
from jobs.errors import InvalidRequest
from jobs.platform.url_guard import parse
from jobs.webhooks.sending import AttemptOutcome, body, check_secret, open_client, post_signed
from jobs.webhooks.tables import Event


def follow_events(server: Server, after: int) -> Iterator[Mapping[str, Any]]:
    """Yield each event after a position, without end. Connect again behind the last event when a connection breaks.

    Raises:
        ServerUnavailable: the server does not come back.
        CliError: the server refuses the request.
    """
    pause, unreachable_since = threading.Event(), None
    while True:
        try:
            with server.events(after) as events:
                unreachable_since = None
                for event in events:
                    after = event["position"]
                    yield event
        except ServerUnavailable:
            unreachable_since = unreachable_since or time.monotonic()
            if time.monotonic() - unreachable_since > server.timings.follow_patience:
                raise
        pause.wait(server.timings.follow_look)


class Forwarder:
    """Post events to one URL of this machine or its network, signed with one secret, once each."""

    def __init__(self, url: str, secret: str) -> None:
        """Check the URL and the secret.

        Raises: CliError, for an invalid URL or secret, and for wrong settings.
        """
        try:
            parse(url, allow_private=True)
            self._secret = check_secret(secret)
        except InvalidRequest as error:
            raise CliError(error.message) from error
        self._url = url
        self._config = effective().model_copy(update={"webhook_allow_private": True})

    def post(self, event: Mapping[str, Any]) -> AttemptOutcome:
        """Post one event of the feed. The id of the event is the `webhook-id`."""
        return asyncio.run(self._post(event))

    async def _post(self, event: Mapping[str, Any]) -> AttemptOutcome:
        content = body(Event(**{name: event[name] for name in ("id", "type", "data", "created_at")}))
        async with open_client(self._config) as client:
            return await post_signed(client, self._url, [self._secret], event["id"], content, sequence=event["seq"])
