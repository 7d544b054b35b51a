"""What the process holds that serves a model, where it runs on this machine."""

import socket
from pathlib import Path

from cli.effective import running
from cli.folder import DataFolder
from cli.ledger import opened
from cli.trouble import Trouble
from jobs.fleet import workers
from jobs.fleet.models_file import EngineKind, ModelsFileError, Registry
from jobs.platform import processes


def resident_bytes(url: str, model: str, data_dir: Path | None) -> int | None:
    """Of one worker, with all models that it serves; None where that cannot be seen from here."""
    config = running(data_dir)
    if DataFolder(config.data_dir).read_run().get("url") != url:
        return None  # another deployment than this machine's
    try:
        known = Registry.load(config).resolve(model)
        if known is None or known.engine is not EngineKind.EMBED:
            return None  # a server's memory is not its worker's
        with opened(data_dir) as db, db.read() as session:
            found = [
                (worker.pid, worker.started)
                for worker in workers.alive(session, known.queue)
                if known.name in worker.models and worker.host == socket.gethostname()
            ]
    except (Trouble, ModelsFileError):
        return None
    alive = [pid for pid, started in found if processes.alive(pid, started)]
    return next((size for size in map(processes.resident_bytes, alive) if size), None)
