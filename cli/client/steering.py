"""Steer a deployment: by the routes of its server with an admin key, else in its database, which works without.

The database of this host is used where no admin key is given, so that an operator there needs neither key nor API.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

from sqlalchemy.orm import Session

from cli.client.server import Server, connect
from cli.up.effective import opened, running
from jobs.db.engine import Database
from jobs.fleet import steering
from jobs.fleet.models_file import ModelsFileError, Registry
from jobs.fleet.steering import Kind
from jobs.registry import models

_ACTOR: Final = "operator"
_JSON = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SteeredDeployment:
    """A deployment, by a client of its server or by its database. Its methods return the objects of the routes."""

    target: Server | Database
    data_dir: Path | None

    def workers(self) -> list[_JSON]:
        return self._entries("/workers", steering.live_workers)

    def pauses(self) -> list[_JSON]:
        return self._entries("/pauses", lambda session: steering.describe_pauses(session, self._aliases()))

    def quarantines(self) -> list[_JSON]:
        return self._entries("/quarantines", steering.describe_quarantines)

    def pause(self, kind: Kind, name: str) -> _JSON:
        return self._run(
            lambda server: server.post("/pauses", {"kind": kind, "name": name}),
            lambda session: asdict(steering.pause(session, self._registry, kind, name, actor=_ACTOR)),
        )

    def resume(self, kind: Kind, name: str) -> _JSON:
        return self._run(
            lambda server: server.delete(_path(kind, name)),
            lambda session: asdict(steering.resume(session, self._registry, kind, name, actor=_ACTOR)),
        )

    def remaining(self, kind: Kind, name: str) -> _JSON:
        return self._run(
            lambda server: server.get(_path(kind, name)),
            lambda session: steering.remaining(session, self._registry, kind, name),
            writes=False,
        )

    def decide_probe(self, model: str, *, accept: bool) -> _JSON:
        def decide(session: Session) -> _JSON:
            tuned = models.decide_probe(session, model, accept=accept, actor=_ACTOR)
            return {"object": "model.probe", "model": tuned.name, "state": tuned.state, "accepted": accept}

        return self._run(
            lambda server: server.post(f"/models/{quote(model, safe='')}/probe", {"accept": accept}), decide
        )

    def _entries(self, path: str, read: Callable[[Session], list[_JSON]]) -> list[_JSON]:
        return self._run(lambda server: list(server.get(path)["data"]), read, writes=False)

    def _run(self, ask: Callable[[Server], T], execute: Callable[[Session], T], *, writes: bool = True) -> T:
        """Ask the server, or execute the same in a transaction of the database."""
        if isinstance(self.target, Server):
            return ask(self.target)
        with self.target.write() if writes else self.target.read() as session:
            return execute(session)

    def _registry(self) -> Registry:
        return Registry.load(running(self.data_dir))

    def _aliases(self) -> Mapping[str, str]:
        try:
            return self._registry().aliases
        except ModelsFileError:  # aliases are shown as models
            return {}


def _path(kind: str, name: str) -> str:
    return f"/pauses/{kind}/{quote(name, safe='')}"


@contextmanager
def open_deployment(url: str | None, admin_key: str | None, data_dir: Path | None) -> Iterator[SteeredDeployment]:
    """Yield the deployment to steer. Raises CliError as `connect` and `opened` do."""
    with connect(url, admin_key, data_dir) if admin_key else opened(data_dir) as target:
        yield SteeredDeployment(target, data_dir)
