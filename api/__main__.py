"""The web process: `python -m api`."""

import gc
import logging

from api.app import build
from api.server import server
from jobs import logs
from jobs.db import Database
from jobs.hosts import claim_host
from jobs.settings import settings

log = logging.getLogger(__name__)


def main() -> None:
    config = settings()
    logs.configure(config.log_level)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # it would tell the same in sentences
    db = Database(config.database)
    claim_host(db)
    db.close()
    app = build(config)
    gc.collect()
    gc.freeze()  # to look through all that was loaded takes a tenth of a second, in which nobody is answered
    log.info("web_started", extra={"host": config.host, "port": config.port})
    server(app, config).run()
    log.info("web_stopped")


if __name__ == "__main__":
    main()
