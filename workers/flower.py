"""Flower, behind a password: `python -m workers.flower`.

Only the local machine reaches it, and only with `FLOWER_BASIC_AUTH` (`user:password`, or in the file that
`FLOWER_BASIC_AUTH_FILE` names); it is read-only. Tasks show
their names and ids, never a prompt: a doorbell carries nothing else.
"""

import os

from jobs import logs
from jobs.secretfiles import secret
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
    app.start(
        [
            "flower",
            f"--address={config.flower_host}",
            f"--port={config.flower}",
            "--purge_offline_workers=60",
            "--inspect_timeout=3000",
        ]
    )


if __name__ == "__main__":
    main()
