"""The last step before a supervised program: `python -I -S child.py PARENT FOLDER PROGRAM ARGUMENT…`.

It asks the kernel to kill this process when the supervisor dies, resets inherited signals, and executes the program.
It is a program of its own, because a process with threads must not run Python code between fork and exec.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_NOT_FOUND = 127


def main(parent: int, folder: str, program: list[str]) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the supervisor died before the line above
        os._exit(1)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # Python, a shell's `&` and nohup ignore these
    os.closerange(3, 1 << 16)
    try:
        os.chdir(folder)
        os.execvp(program[0], program)  # noqa: S606 (the Procfile says what runs)
    except OSError as error:
        print(f"{program[0]}: {error.strerror}", file=sys.stderr)
        os._exit(_NOT_FOUND)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
