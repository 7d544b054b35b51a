"""Make the names below `slow.example.com` slow to look up in every Python process that has this folder on PYTHONPATH.

A look-up of such a name takes the seconds that NIGHTMILL_TEST_SLOW_NAMES says, and finds nothing. Only the standard
library is imported: this module runs before anything else of the process does.
"""

import os
import socket
import threading
from typing import Any

_SYSTEM = socket.getaddrinfo


def _slow(host: Any, *arguments: Any, **options: Any) -> Any:
    if str(host).rstrip(".").endswith("slow.example.com"):
        threading.Event().wait(float(os.environ["NIGHTMILL_TEST_SLOW_NAMES"]))
        raise socket.gaierror(socket.EAI_AGAIN, "the name server is slow")
    return _SYSTEM(host, *arguments, **options)


if "NIGHTMILL_TEST_SLOW_NAMES" in os.environ:
    socket.getaddrinfo = _slow
