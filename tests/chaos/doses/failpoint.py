"""A web process that dies between the commit of its first job and the answer.

python -m tests.chaos.doses.failpoint
"""

import os
import signal

from sqlalchemy import event
from sqlalchemy.orm import Session

from api.__main__ import main
from jobs.ledger.tables import Job

_MADE = "failpoint.made"


@event.listens_for(Session, "after_flush")
def _flushed(session: Session, _context: object) -> None:
    if any(isinstance(row, Job) for row in session.new):
        session.info[_MADE] = True


@event.listens_for(Session, "after_commit")
def _committed(session: Session) -> None:
    if _MADE in session.info:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
