"""Flower, behind a password: `python -m workers.flower`.

Only the local machine reaches it, and only with `FLOWER_BASIC_AUTH` (`user:password`, or in the file that
`FLOWER_BASIC_AUTH_FILE` names). It changes nothing: what would stop a worker or send a task answers 403. Tasks show
their names and ids, never a prompt: a message carries nothing else.
"""

import os
from typing import Any

from jobs import logs
from jobs.platform.secret_files import secret
from jobs.settings import settings
from workers import app as celery_app


def main() -> None:
    config = settings()
    logs.configure(config.log_level)
    login = secret("FLOWER_BASIC_AUTH")
    if not login:
        raise SystemExit("Flower needs a password: set FLOWER_BASIC_AUTH=user:password (`nightmill up` makes one)")
    os.environ["FLOWER_BASIC_AUTH"] = login
    app = celery_app.build(config)
    app.set_default()
    _protect_metrics()
    app.start(
        [
            "flower",
            f"--address={config.flower_host}",
            f"--port={config.flower}",
            "--purge_offline_workers=60",
            "--inspect_timeout=3000",
            "--read_only=True",
        ]
    )


def _protect_metrics() -> None:
    """Require the password for Flower's own `/metrics`, which Flower 2.2 serves to anyone."""
    from flower.views.monitor import Metrics

    def prepare(handler: Any) -> None:
        handler.get_current_user()  # raises 401

    Metrics.prepare = prepare


if __name__ == "__main__":
    main()
