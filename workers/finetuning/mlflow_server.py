"""MLflow's server: single requests to its REST interface, without its library."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import httpx2

from jobs.settings import Settings
from workers.finetuning.tracked_run import TrackingFailed

_API: Final = "/api/2.0/mlflow"
_SECONDS: Final = 10.0


class MlflowRefused(TrackingFailed):
    """The server understands a request, and does not take it."""


class MlflowServer:
    """A server of MLflow. Each request raises `TrackingFailed`, or `MlflowRefused` where it is not to be repeated."""

    def __init__(self, client: httpx2.Client, url: str) -> None:
        self._client, self._url = client, url.rstrip("/") + _API

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._request("POST", path, json=body)

    def delete(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._request("DELETE", path, json=body)

    def get(self, path: str, query: dict[str, Any], *, missing: bool = False) -> dict[str, Any]:
        """Return the answer; with `missing` an empty one where what was asked for does not exist."""
        return self._request("GET", path, missing=missing, params=query)

    def _request(self, method: str, path: str, *, missing: bool = False, **arguments: Any) -> dict[str, Any]:
        try:
            answer = self._client.request(method, f"{self._url}/{path}", **arguments)
            if missing and answer.status_code == httpx2.codes.NOT_FOUND:
                return {}
            if answer.status_code != httpx2.codes.OK:
                failure = MlflowRefused if answer.status_code == httpx2.codes.BAD_REQUEST else TrackingFailed
                raise failure(f"the server answered {path} with status {answer.status_code}.")
            body: dict[str, Any] = answer.json()
            return body
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise TrackingFailed(f"the server cannot be reached ({type(error).__name__}).") from error
        except ValueError as error:
            raise TrackingFailed("the server does not answer as MLflow does.") from error


@contextmanager
def open_server(config: Settings) -> Iterator[MlflowServer]:
    """Open connections to the operator's server of MLflow."""
    auth, headers = _credentials(config.mlflow_token)
    with httpx2.Client(timeout=_SECONDS, auth=auth, headers=headers) as client:
        yield MlflowServer(client, config.mlflow_url)


def pairs(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return parameters or tags as MLflow takes them."""
    return [{"key": name, "value": str(value)} for name, value in values.items()]


def _credentials(token: str) -> tuple[tuple[str, str] | None, dict[str, str]]:
    """Return `user:password` as a pair, or the header of a bearer token."""
    user, colon, password = token.partition(":")
    if colon:
        return (user, password), {}
    return None, {"Authorization": f"Bearer {token}"} if token else {}
