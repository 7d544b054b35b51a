"""Start a confined process: `python -m workers.sandbox POLICY PARENT`, or without arguments name the missing parts."""

import importlib
import os
import sys
from typing import Final

import msgspec

from workers.sandbox.channel import Channel
from workers.sandbox.confinement import Policy, confine

_CHILDREN: Final = ("workers.retrieval.parsing.parser_child", "workers.middleware.schema_checker_child")


def main() -> None:
    """Confine this process before anything else, then run the module of the policy."""
    policy = msgspec.json.decode(sys.argv[1], type=Policy)
    missing = confine(policy, int(sys.argv[2]))
    importlib.import_module(policy.module).main(Channel(missing))


def probe() -> None:
    """Print the parts that the kernel refuses here, a line each; `nightmill doctor` reads them.

    Raises: ImportError where the confined process cannot load what it is to run.
    """
    missing = confine(Policy(""), os.getppid())
    for module in _CHILDREN:
        importlib.import_module(module)
    sys.stdout.write("".join(f"{part}\n" for part in missing))


if __name__ == "__main__":
    main() if sys.argv[1:] else probe()
