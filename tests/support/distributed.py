"""The distributed set on one machine: PostgreSQL, RabbitMQ, S3 and Valkey as servers; hosts share nothing else.

Servers    started together; `variables` is the environment that makes a deployment use them
a host     an `up` with a data folder of its own
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from tests.support.servers import Rabbit, S3Gateway, Valkey
from tests.support.services import Postgres


class Killable(Protocol):
    """A server that dies and comes back on the same port with what it had on disk."""

    def processes(self) -> list[psutil.Process]: ...
    def kill(self) -> None: ...
    def start(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Servers:
    """Run the servers that the hosts share."""

    postgres: Postgres
    database: str
    rabbit: Rabbit
    s3: S3Gateway
    valkey: Valkey

    @property
    def named(self) -> dict[str, Killable]:
        return {"PostgreSQL": self.postgres, "RabbitMQ": self.rabbit, "S3": self.s3}

    @property
    def variables(self) -> dict[str, str]:
        return {
            "NIGHTMILL_DATABASE_URL": self.database,
            "NIGHTMILL_BROKER_URL": self.rabbit.url,
            "NIGHTMILL_STREAMS_URL": self.valkey.url,
            "NIGHTMILL_STORAGE_URL": f"s3://{self.s3.BUCKET}/data",
            **self.s3.variables,
        }


@contextmanager
def servers(folder: Path, *, migrated: bool = True) -> Iterator[Servers]:
    """All of them; `migrated`: the database has its tables already.

    Raises FileNotFoundError, TimeoutError or CalledProcessError where one can't be had.
    """
    with ExitStack() as stack:
        rabbit, s3, valkey = Rabbit(folder / "rabbitmq"), S3Gateway(folder / "s3"), Valkey(folder / "valkey")
        for server in (rabbit, s3, valkey):
            stack.callback(server.close)
            server.start()
        s3.make_bucket()
        postgres = Postgres()
        stack.callback(postgres.close)
        yield Servers(postgres, stack.enter_context(postgres.database(migrated=migrated)), rabbit, s3, valkey)
