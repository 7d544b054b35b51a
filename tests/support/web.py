"""A web process for tests: a real database and storage in a folder, in process or behind a real socket."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from api.app import build
from api.server import server
from jobs.keys import create_key
from jobs.settings import Settings


@contextmanager
def running_app(folder: Path, database_url: str, **settings: Any) -> Iterator[FastAPI]:
    """The app over a migrated database."""
    given = {"data_dir": folder, "database_url": database_url, "min_free_bytes": 0, **settings}
    app = build(Settings(**given))
    yield app
    app.state.services.db.close()


def make_key(app: FastAPI, project: str = "default") -> str:
    """A new key of a project, which is made when it is new."""
    with app.state.services.db.write() as session:
        return create_key(session, project)


@contextmanager
def serve(app: FastAPI) -> Iterator[str]:
    """The app behind a real socket, in a thread; yields its URL."""
    web = server(app, app.state.services.config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    pause = threading.Event()
    while not web.started and thread.is_alive():
        pause.wait(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        app.state.services.stopping.set()
        web.should_exit = True
        thread.join(15)
        listener.close()
