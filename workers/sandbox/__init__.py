"""Run code that handles hostile input in a process that can reach nothing but its input.

    parent: process.Child                        child: python -m workers.sandbox
    start, with an empty environment ──────────▶ confinement: user, namespaces, limits, capabilities,
                                                 Landlock (files), seccomp (system calls)
                                                 import the module, call its `main(channel)`
                      ◀── Ready(missing) ─────── channel.ready()
    send(message, descriptors) ────────────────▶ channel.receive()
    receive(seconds, largest) ◀───────────────── channel.send(message)

The input arrives as messages and open descriptors, never as paths. The confinement comes before any library that the
input could attack is loaded, and before there is a second thread, which Landlock and user namespaces would not cover.
A kernel that refuses one part gets all the others; the missing parts are logged as `sandbox_incomplete`.
"""
