"""The web process: `python -m api`."""

import logging

from api.app import build
from api.server import server
from jobs import logs
from jobs.db.engine import Database
from jobs.db.hosts import claim_host
from jobs.platform import memory
from jobs.settings import settings

log = logging.getLogger(__name__)


def main() -> None:
    config = settings()
    logs.configure(config.log_level)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # our logs have the same facts as fields
    db = Database(config.database)
    claim_host(db)
    db.close()
    app = build(config)
    memory.freeze()
    log.info("web_started", extra={"host": config.host, "port": config.port})
    server(app, config).run()
    log.info("web_stopped")


if __name__ == "__main__":
    main()
