"""Steer a deployment: by the routes of its server with an operator's key, else in its database, which works without.

The database of this host is used where no operator's key is given, so that an operator there needs neither key nor API.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote

from cli.client.server import Server, connect

if TYPE_CHECKING:
    from jobs.db.engine import Database
    from jobs.fleet.models_file import Registry
    from jobs.fleet.steering import Kind

_ACTOR: Final = "operator"
_JSON = dict[str, Any]


class Deployment(Protocol):
    """The objects are those of the routes."""

    def workers(self) -> list[_JSON]: ...

    def paused(self) -> list[_JSON]: ...

    def quarantined(self) -> list[_JSON]: ...

    def pause(self, kind: "Kind", name: str) -> _JSON: ...

    def resume(self, kind: "Kind", name: str) -> _JSON: ...

    def remaining(self, kind: "Kind", name: str) -> _JSON: ...

    def decide_probe(self, model: str, *, accept: bool) -> _JSON: ...


@contextmanager
def steered(url: str | None, operator_key: str | None, data_dir: Path | None) -> Iterator[Deployment]:
    """Yield the deployment."""
    if operator_key:
        with connect(url, operator_key, data_dir) as server:
            yield _Elsewhere(server)
        return
    from cli.up.effective import opened

    with opened(data_dir) as db:
        yield _Here(db, data_dir)


class _Elsewhere:
    def __init__(self, server: Server) -> None:
        self._server = server

    def workers(self) -> list[_JSON]:
        return self._list("/workers")

    def paused(self) -> list[_JSON]:
        return self._list("/pauses")

    def quarantined(self) -> list[_JSON]:
        return self._list("/quarantines")

    def _list(self, path: str) -> list[_JSON]:
        entries: list[_JSON] = self._server.get(path)["data"]
        return entries

    def pause(self, kind: "Kind", name: str) -> _JSON:
        return self._server.post("/pauses", {"kind": kind, "name": name})

    def resume(self, kind: "Kind", name: str) -> _JSON:
        return self._server.delete(_path(kind, name))

    def remaining(self, kind: "Kind", name: str) -> _JSON:
        return self._server.get(_path(kind, name))

    def decide_probe(self, model: str, *, accept: bool) -> _JSON:
        return self._server.post(f"/models/{quote(model, safe='')}/probe", {"accept": accept})


def _path(kind: str, name: str) -> str:
    return f"/pauses/{kind}/{quote(name, safe='')}"


class _Here:
    def __init__(self, db: "Database", data_dir: Path | None) -> None:
        self._db, self._data_dir = db, data_dir

    def _registry(self) -> "Registry":
        from cli.up.effective import running
        from jobs.fleet.models_file import Registry

        return Registry.load(running(self._data_dir))

    def workers(self) -> list[_JSON]:
        from jobs.fleet import steering

        with self._db.read() as session:
            return steering.live_workers(session)

    def paused(self) -> list[_JSON]:
        from jobs.fleet import steering
        from jobs.fleet.models_file import ModelsFileError

        aliases: Mapping[str, str] = {}
        with suppress(ModelsFileError):  # an invalid file: aliases are shown as models
            aliases = self._registry().aliases
        with self._db.read() as session:
            return steering.paused(session, aliases)

    def quarantined(self) -> list[_JSON]:
        from jobs.fleet import steering

        with self._db.read() as session:
            return steering.quarantined(session)

    def pause(self, kind: "Kind", name: str) -> _JSON:
        from dataclasses import asdict

        from jobs.fleet import steering

        with self._db.write() as session:
            return asdict(steering.pause(session, self._registry, kind, name, actor=_ACTOR))

    def resume(self, kind: "Kind", name: str) -> _JSON:
        from dataclasses import asdict

        from jobs.fleet import steering

        with self._db.write() as session:
            return asdict(steering.resume(session, self._registry, kind, name, actor=_ACTOR))

    def remaining(self, kind: "Kind", name: str) -> _JSON:
        from jobs.fleet import steering

        with self._db.read() as session:
            return steering.remaining(session, self._registry, kind, name)

    def decide_probe(self, model: str, *, accept: bool) -> _JSON:
        from jobs.registry import models

        with self._db.write() as session:
            tuned = models.decide_probe(session, model, accept=accept, actor=_ACTOR)
            return {"object": "model.probe", "model": tuned.name, "state": tuned.state, "accepted": accept}
