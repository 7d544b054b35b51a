"""What stays in a process's memory."""

import gc


def settle() -> None:
    """Whatever is in memory now stays for good, and the collector leaves it alone from here on.

    A process holds hundreds of thousands of objects of its libraries. To look through them for every dozen shards took
    nearly half of a worker's time, and a web process answers nobody for the tenth of a second that one look takes. What
    was taken for good before, and is needed no more, is freed first.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
