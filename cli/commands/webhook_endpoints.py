"""`nightmill webhooks create`, `list`, `test`, `deliveries`, `delete`: the webhook endpoints of a project."""

from http import HTTPStatus
from typing import Annotated, Any

import typer

from cli.client.server import connect
from cli.errors import CliError
from cli.options import ApiKey, AsJson, DataDir, Limit, Url
from cli.terminal import moment, show, show_entries

Id = Annotated[
    str, typer.Argument(metavar="ENDPOINT", help="The endpoint's id, as `nightmill webhooks list` shows it.")
]
Event = Annotated[str, typer.Option("--event-type", help="The type of the event.")]


def create(
    address: Annotated[str, typer.Argument(metavar="URL", help="Where events are sent, by POST.")],
    name: Annotated[str, typer.Option(help="A name for people. Else the URL.")] = "",
    event_type: Annotated[
        list[str] | None, typer.Option(help="Only events of this type; may be given several times. Else all.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Create an endpoint, and print its id and its signing secret. The secret is shown only once."""
    from jobs.known_kinds import EVENT_TYPES

    body = {"name": name or address[:255], "url": address, "event_types": event_type or list(EVENT_TYPES)}
    with connect(url, api_key, data_dir) as server:
        made = server.post("/webhook_endpoints", body)
    show(made, made["id"], f"signing secret: {made['signing_secret']}", as_json=as_json)


def list_(
    limit: Limit = 20, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = None
) -> None:
    """List the webhook endpoints of your project, the newest first."""
    with connect(url, api_key, data_dir) as server:
        entries = server.pages("/webhook_endpoints", {}, limit)
    head = ("endpoint", "name", "url", "events", "created", "disabled")
    show_entries(entries, head, _row, as_json=as_json, has_more=entries.has_more)


def send_test(
    endpoint: Id,
    event_type: Event = "batch.completed",
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """Send a test event to an endpoint and print the answer. Exit code 1 if the event was not accepted."""
    with connect(url, api_key, data_dir) as server:
        answer = server.post(f"/webhook_endpoints/{endpoint}/test", {"event_type": event_type})
    show(answer, f"status {answer['status_code']}", as_json=as_json)
    if answer["status_code"] >= HTTPStatus.BAD_REQUEST:
        raise CliError(f"{endpoint} did not accept the event: status {answer['status_code']}")


def deliveries(
    endpoint: Id,
    limit: Limit = 20,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = None,
) -> None:
    """List what was sent to an endpoint, the newest first, with the result."""
    with connect(url, api_key, data_dir) as server:
        entries = server.pages(f"/webhook_endpoints/{endpoint}/deliveries", {}, limit)
    head = ("delivery", "event", "state", "attempts", "created", "result")
    show_entries(entries, head, _delivery_row, as_json=as_json, has_more=entries.has_more)


def delete(
    endpoint: Id, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = None
) -> None:
    """Delete an endpoint. No more events are sent to it."""
    with connect(url, api_key, data_dir) as server:
        show(server.delete(f"/webhook_endpoints/{endpoint}"), f"{endpoint} deleted", as_json=as_json)


def _row(endpoint: dict[str, Any]) -> tuple[object, ...]:
    disabled = moment(endpoint["disabled_at"])
    columns = (endpoint["name"], endpoint["url"], len(endpoint["event_types"]), moment(endpoint["created_at"]))
    return endpoint["id"], *columns, disabled


def _delivery_row(delivery: dict[str, Any]) -> tuple[object, ...]:
    result = delivery["error"] or delivery["status_code"] or "-"
    columns = (delivery["event_type"] or "-", delivery["state"], len(delivery["attempts"]))
    return delivery["id"], *columns, moment(delivery["created_at"]), result
