"""Flower, behind a password and the login: `python -m workers.flower`.

Only the local machine reaches it, and only with `FLOWER_BASIC_AUTH` (`user:password`, or in the file that
`FLOWER_BASIC_AUTH_FILE` names), or by the login of `workers.flower_login`, where there is an identity provider. It
changes nothing: what would stop a worker or send a task answers 403. Tasks show their names and ids, never a prompt: a
message carries nothing else.
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
    if login:
        os.environ["FLOWER_BASIC_AUTH"] = login
    elif not config.oidc_issuer:
        raise SystemExit("Flower needs a password: set FLOWER_BASIC_AUTH=user:password (`nightmill up` makes one)")
    app = celery_app.build(config)
    app.set_default()
    _protect_metrics()
    login_options: list[str] = []
    if config.oidc_issuer:
        from workers import flower_login

        login_options = flower_login.options(config)
    app.start(
        [
            "flower",
            f"--address={config.flower_host}",
            f"--port={config.flower}",
            "--purge_offline_workers=60",
            "--inspect_timeout=3000",
            "--read_only=True",
            *login_options,
        ]
    )


def _protect_metrics() -> None:
    """Require the password or the login for Flower's own `/metrics`, which Flower 2.2 serves to anyone."""
    from flower.views.monitor import Metrics

    def prepare(handler: Any) -> None:
        if not handler.current_user:
            handler.send_error(401)

    Metrics.prepare = prepare


if __name__ == "__main__":
    main()
