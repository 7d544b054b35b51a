"""`nightmill webhooks create`, `list`, `test`, `deliveries`, `delete`: the webhook endpoints of a project."""

from http import HTTPStatus
from typing import Annotated, Any

import typer

from cli.errors import CliError
from cli.options import Limit, ServerOptions
from cli.terminal import moment

Id = Annotated[
    str, typer.Argument(metavar="ENDPOINT", help="The endpoint's id, as `nightmill webhooks list` shows it.")
]
Event = Annotated[str, typer.Option("--event-type", help="The type of the event.")]


def create(
    options: ServerOptions,
    address: Annotated[str, typer.Argument(metavar="URL", help="Where events are sent, by POST.")],
    name: Annotated[str, typer.Option(help="A name for people. Else the URL.")] = "",
    event_type: Annotated[
        list[str] | None, typer.Option(help="Only events of this type; may be given several times. Else all.")
    ] = None,
) -> None:
    """Create an endpoint, and print its id and its signing secret. The secret is shown only once."""
    from jobs.known_kinds import EVENT_TYPES

    body = {"name": name or address[:255], "url": address, "event_types": event_type or list(EVENT_TYPES)}
    made = options.server.post("/webhook_endpoints", body)
    options.show(made, made["id"], f"signing secret: {made['signing_secret']}")


def list_(options: ServerOptions, limit: Limit = 20) -> None:
    """List the webhook endpoints of your project, the newest first."""
    head = ("endpoint", "name", "url", "events", "created", "disabled")
    options.show_entries(options.server.pages("/webhook_endpoints", {}, limit), head, _row)


def send_test(options: ServerOptions, endpoint: Id, event_type: Event = "batch.completed") -> None:
    """Send a test event to an endpoint and print the answer. Exit code 1 if the event was not accepted."""
    answer = options.server.post(f"/webhook_endpoints/{endpoint}/test", {"event_type": event_type})
    options.show(answer, f"status {answer['status_code']}")
    if answer["status_code"] >= HTTPStatus.BAD_REQUEST:
        raise CliError(f"{endpoint} did not accept the event: status {answer['status_code']}")


def deliveries(options: ServerOptions, endpoint: Id, limit: Limit = 20) -> None:
    """List what was sent to an endpoint, the newest first, with the result."""
    entries = options.server.pages(f"/webhook_endpoints/{endpoint}/deliveries", {}, limit)
    head = ("delivery", "event", "state", "attempts", "created", "result")
    options.show_entries(entries, head, _delivery_row)


def delete(options: ServerOptions, endpoint: Id) -> None:
    """Delete an endpoint. No more events are sent to it."""
    options.show(options.server.delete(f"/webhook_endpoints/{endpoint}"), f"{endpoint} deleted")


def _row(endpoint: dict[str, Any]) -> tuple[object, ...]:
    disabled = moment(endpoint["disabled_at"])
    columns = (endpoint["name"], endpoint["url"], len(endpoint["event_types"]), moment(endpoint["created_at"]))
    return endpoint["id"], *columns, disabled


def _delivery_row(delivery: dict[str, Any]) -> tuple[object, ...]:
    result = delivery["error"] or delivery["status_code"] or "-"
    columns = (delivery["event_type"] or "-", delivery["state"], len(delivery["attempts"]))
    return delivery["id"], *columns, moment(delivery["created_at"]), result
