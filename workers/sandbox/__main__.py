"""Start a confined process: `python -m workers.sandbox POLICY PARENT`.

Without arguments print the missing parts of a process that confines itself, with `forks` those of one that forks.
"""

import importlib
import os
import sys
from typing import Final

import msgspec

from workers.sandbox import forking
from workers.sandbox.channel import Channel
from workers.sandbox.confinement import Policy, confine

_CHILDREN: Final = ("workers.retrieval.parsing.parser_child", "workers.middleware.schema_checker_child")


def main() -> None:
    """Confine this process before anything else, then run the module of the policy."""
    policy = msgspec.json.decode(sys.argv[1], type=Policy)
    missing = forking.separate_first() if policy.forks else confine(policy, int(sys.argv[2]))
    importlib.import_module(policy.module).main(Channel(missing))


def probe() -> None:
    """Print the parts that the kernel refuses here, a line each; `nightmill doctor` reads them.

    Raises: ImportError where the confined process cannot load what it is to run.
    """
    missing = confine(Policy(""), os.getppid())
    for module in _CHILDREN:
        importlib.import_module(module)
    sys.stdout.write("".join(f"{part}\n" for part in missing))


def probe_forks() -> None:
    """Print the parts that a process which was forked for an input lacks here, a line each."""
    missing = forking.separate_first()
    sys.stdout.write("".join(f"{part}\n" for part in (*missing, *forking.missing_in_inputs())))


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            probe()
        case ["forks"]:
            probe_forks()
        case _:
            main()
