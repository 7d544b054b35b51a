"""`nightmill status`, `logs`, `down`: what `nightmill up` runs on this machine."""

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import Trouble
from cli.options import AsJson, DataDir
from cli.terminal import say, show, show_json, show_table
from jobs.timings import Timings

if TYPE_CHECKING:
    from cli.up.folder import DataFolder


def status(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Show what `nightmill up` runs, where it answers, and how its processes are. Exit code 1 if nothing runs."""
    from cli.up import deployments, readiness

    folder = _folder(data_dir)
    run = folder.live_run()
    found: dict[str, Any] = {
        "data_dir": str(folder.path),
        "state": state(folder),
        **{name: run.get(name) for name in ("pid", "url", "flower_url")},
        "api": readiness.look(run["url"]) if run else None,
        "processes": run.get("processes", []),
        "others": [str(one.path) for one in deployments.remembered() if one.is_running and one.path != folder.path],
    }
    if as_json:
        show_json(found)
    else:
        _show(found, folder)
    raise typer.Exit(not run)


def state(folder: "DataFolder") -> str:
    """Return the state of the last `nightmill up` of the folder."""
    owner = folder.owner()
    if owner is None or not (folder.read_run() or owner.lives):
        return "stopped" if folder.was_started else "never started"
    if owner.has_ended:
        return "killed"
    if not owner.lives:
        return f"running on host {owner.host}"
    return "running" if folder.live_run() else "starting"


_ADVICE: Mapping[str, str] = {
    "never started": "start it with `nightmill up`, or name another folder with --data-dir",
    "stopped": "start it with `nightmill up`, or name another folder with --data-dir",
    "killed": "its supervisor was killed, or the machine was; `nightmill up` goes on where it was",
    "starting": "`nightmill logs` shows what it does",
}


def _show(found: Mapping[str, Any], folder: "DataFolder") -> None:
    say(f"{found['data_dir']}: {found['state']}" + (f" (pid {found['pid']})" if found["pid"] else ""))
    if advice := _ADVICE.get(found["state"]):
        say(advice)
    if found["url"]:
        answer = (found["api"] or {}).get("status", "no answer")
        say(f"API: {found['url']}/v1 ({answer}); its key is in {folder.run_file}")
    if found["flower_url"]:
        say(f"Flower: {found['flower_url']}")
    if found["processes"]:
        columns = ("name", "state", "pid", "restarts", "ending")
        rows = [["-" if one[name] is None else one[name] for name in columns] for one in found["processes"]]
        show_table(("process", "state", "pid", "restarts", "last end"), rows)
    for other in found["others"]:
        say(f"also running: {other}")


def logs(
    name: Annotated[str, typer.Argument(help="A process, such as web or gpu; up is the supervisor. Else all.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is logged, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines of each process, the last ones.")] = 20,
    data_dir: DataDir = None,
) -> None:
    """Show the logs of the processes of `nightmill up`, also after it has ended."""
    from cli.up.service import LogFile

    folder = _folder(data_dir)
    found = {path.stem: LogFile(path) for path in sorted(folder.logs.glob("*.log"))}
    if name and name not in found:
        known = f"there are {', '.join(found)}" if found else "name another folder with --data-dir"
        raise Trouble(f"{folder.logs} has no log of '{name}'; {known}")
    if not found:
        raise Trouble(f"{folder.path} has no logs: nothing was started there; name another folder with --data-dir")
    shown = {name: found[name]} if name else found
    for one, log in shown.items():
        _print(one, log.tail(lines).splitlines(), alone=bool(name))
    if follow:
        _follow(shown, Timings())


def _follow(shown: Mapping[str, Any], timings: Timings) -> None:
    try:
        while True:
            for name, log in shown.items():
                _print(name, log.fresh(), alone=len(shown) == 1)
            threading.Event().wait(timings.logs_look)
    except KeyboardInterrupt:
        return


def _print(name: str, lines: list[str], *, alone: bool) -> None:
    for line in lines:
        say(line if alone else f"{name:>10} | {line}")


def down(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Stop what `nightmill up` runs, and wait for its end. Workers return their unfinished work, as after Ctrl-C."""
    from cli.up.background import stop

    folder = _folder(data_dir)
    if not stop(folder):
        raise Trouble(f"nothing runs in {folder.path}; name another folder with --data-dir")
    show({"data_dir": str(folder.path), "stopped": True}, f"stopped what ran in {folder.path}", as_json=as_json)


def _folder(data_dir: Any) -> "DataFolder":
    from cli.up.effective import effective
    from cli.up.folder import DataFolder

    return DataFolder(effective(data_dir=data_dir).data_dir)
