"""Wall time, in one place: SQL stores unix seconds as floats, the API shows whole seconds.

Nothing that decides over a lease reads this clock; the dispatcher's own monotonic clock does that.
"""

import time


def now() -> float:
    """Unix time in seconds."""
    return time.time()
