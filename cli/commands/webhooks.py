"""`nightmill webhooks`: see what a receiver would get, before there is one."""

from typing import Annotated

import typer

from cli.groups import Group
from cli.options import ApiKey, DataDir, Url
from cli.terminal import say

app = Group("Register endpoints for webhooks, and see the events that they receive.")


@app.callback()
def group() -> None:
    """Register endpoints for webhooks, and see the events that they receive."""


@app.command()
def listen(
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 0,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    register: Annotated[
        bool, typer.Option("--register", help="Register as an endpoint, and remove it at the end.")
    ] = False,
    secret: Annotated[
        str, typer.Option(envvar="NIGHTMILL_WEBHOOK_SECRET", show_default=False, help="Signing secret to verify with.")
    ] = "",
    count: Annotated[int, typer.Option(help="Stop after this many different events; 0 goes on.")] = 0,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Receive webhooks here, verify their signatures and print them.

    A server sends to addresses of this machine only if NIGHTMILL_WEBHOOK_ALLOW_PRIVATE=true is set where it runs.
    """
    from cli.client.receiver import Receiver

    receiver = Receiver(host, port)
    say(f"listening on {receiver.url}")
    if not register:
        receiver.run(secret, count)
        return
    from cli.client.server import connect
    from jobs.known_kinds import EVENT_TYPES

    wanted = {"name": "nightmill webhooks listen", "url": receiver.url, "event_types": list(EVENT_TYPES)}
    with connect(url, api_key, data_dir) as server:
        endpoint = server.post("/webhook_endpoints", wanted)
        say(f"registered as {endpoint['id']}")
        try:
            receiver.run(endpoint["signing_secret"], count)
        finally:
            server.delete(f"/webhook_endpoints/{endpoint['id']}")
            say(f"removed {endpoint['id']}")
