"""`nightmill webhooks listen`: receive events on this machine without an endpoint."""

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.groups import Group
from cli.options import ServerOptions
from cli.terminal import say

if TYPE_CHECKING:
    from jobs.webhooks.sending import AttemptOutcome

app = Group("Register endpoints for webhooks, and see the events that they receive.")


@app.command()
def listen(
    options: ServerOptions,
    forward_to: Annotated[
        str | None, typer.Option(help="Post each event to this URL, such as http://localhost:3000/webhooks.")
    ] = None,
    secret: Annotated[
        str,
        typer.Option(
            envvar="NIGHTMILL_WEBHOOK_SECRET", show_default=False, help="Secret to sign with. Else a new one is shown."
        ),
    ] = "",
    event_type: Annotated[
        list[str] | None, typer.Option(help="Only events of this type; may be given several times.")
    ] = None,
    after: Annotated[
        int | None, typer.Option(min=0, help="Begin behind this position of the feed. Else with what happens next.")
    ] = None,
    count: Annotated[int, typer.Option(min=0, help="Stop after this many events; 0 goes on.")] = 0,
) -> None:
    """Print the events that webhooks tell as they happen, and post them to a URL of this machine.

    Each is signed as a webhook is, posted once, and not repeated when the receiver fails.
    """
    from cli.client.listening import Forwarder, follow_events
    from cli.errors import CliError
    from jobs.known_kinds import EVENT_TYPES
    from jobs.webhooks.sending import new_secret

    types = frozenset(event_type or EVENT_TYPES)
    if unknown := types.difference(EVENT_TYPES):
        raise CliError(f"no type of event: {', '.join(sorted(unknown))}; there are {', '.join(EVENT_TYPES)}")
    server = options.server
    start = server.get("/events", {"after": "latest"})["last_position"] if after is None else after
    say(f"listening to the events of {server.url} after position {start}", err=True)
    forwarder = None
    if forward_to:
        forwarder = Forwarder(forward_to, known := secret or new_secret())
        if not secret:
            say(f"signing secret: {known}", err=True)
    try:
        events = (event for event in follow_events(server, start) if event["type"] in types)
        for n, event in enumerate(events, 1):
            _show(event, forwarder.post(event) if forwarder else None, as_json=options.as_json)
            if n == count:
                break
    except KeyboardInterrupt:
        say("stopped", err=True)


def _show(event: Mapping[str, Any], outcome: "AttemptOutcome | None", *, as_json: bool) -> None:
    """Print one event and the result of posting it on one line."""
    answer = None if outcome is None else outcome.error or f"status {outcome.status_code}"
    if as_json:
        say(json.dumps({**event, "forwarded": answer}))
        return
    at = time.strftime("%H:%M:%S", time.localtime(event["created_at"]))
    posted = "" if answer is None else f" -> {answer}"
    say(f"{at} {event['position']} {event['type']} {event['data'].get('id', '')} {event['id']}{posted}")
