"""A child where namespaces are forbidden; run in place of the real one."""

import sys

from tests.unit.workers.parsing.rogue import work
from workers.parsing import child, sandbox

if __name__ == "__main__":
    sandbox._without_network = lambda _: False
    child.serve(work, int(sys.argv[1]))
