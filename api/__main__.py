"""The web process: `python -m api`."""

from api.app import build
from api.server import server
from jobs import logs
from jobs.settings import settings


def main() -> None:
    config = settings()
    logs.configure(config.log_level)
    server(build(config), config).run()


if __name__ == "__main__":
    main()
