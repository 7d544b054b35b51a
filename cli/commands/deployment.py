"""`nightmill status`, `console`, `logs`, `down`: what `nightmill up` runs on this machine."""

import threading
import webbrowser
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import CliError
from cli.options import DataDir, HostOptions
from cli.terminal import say, show_json, show_table
from cli.wording import model_progress
from jobs.security.sign_in import links_folder
from jobs.timings import Timings

if TYPE_CHECKING:
    from cli.up.folder import DataFolder


def status(options: HostOptions) -> None:
    """Show what `nightmill up` runs, where it answers, and how its processes are. Exit code 1 if nothing runs."""
    from cli.up import deployments, readiness

    folder = _folder(options.data_dir)
    run = folder.live_run()
    report: dict[str, Any] = {
        "data_dir": str(folder.path),
        "state": state(folder),
        **{name: run.get(name) for name in ("pid", "url", "flower_url")},
        "api": readiness.look(run["url"]) if run else None,
        "processes": run.get("processes", []),
        "others": [
            str(other.path)
            for other in deployments.remembered_folders()
            if other.is_running and other.path != folder.path
        ],
    }
    if options.as_json:
        show_json(report)
    else:
        _show(report, folder)
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


def _show(report: Mapping[str, Any], folder: "DataFolder") -> None:
    say(f"{report['data_dir']}: {report['state']}" + (f" (pid {report['pid']})" if report["pid"] else ""))
    if advice := _ADVICE.get(report["state"]):
        say(advice)
    if report["url"]:
        answer = (report["api"] or {}).get("status", "no answer")
        say(f"API: {report['url']}/v1 ({answer}); its key is in {folder.run_file}")
    if report["flower_url"]:
        say(f"Flower: {report['flower_url']}")
    if report["processes"]:
        columns = ("name", "state", "pid", "restarts", "ending")
        rows = [
            ["-" if process[name] is None else process[name] for name in columns] for process in report["processes"]
        ]
        show_table(("process", "state", "pid", "restarts", "last end"), rows)
    for engine in (report["api"] or {}).get("loading", ()):
        say(f"{engine['queue']}: {model_progress(engine)}")
    for other in report["others"]:
        say(f"also running: {other}")


def console(
    options: HostOptions,
    browser: Annotated[bool, typer.Option("--open", help="Open it in the browser of this machine too.")] = False,
) -> None:
    """Print a link to the console that signs in with the operator's key. It works once, for 15 minutes."""
    from cli.up import readiness

    folder = _folder(options.data_dir)
    run = folder.live_run()
    if not run:
        raise CliError(f"nothing runs in {folder.path}; start it with `nightmill up`, or name another with --data-dir")
    path = readiness.console_path(run["url"])
    if not path:
        raise CliError(f"{run['url']} serves no console: it does not answer, or the console is not built there")
    link = folder.console_link(run["url"] + path)
    options.show({"url": link}, link)
    if browser and not _open_browser(folder, link):
        raise CliError("no browser could be opened here; the link works in any")


def _open_browser(folder: "DataFolder", link: str) -> bool:
    """Open a browser through a page in a private file: every user can read the command line of a browser."""
    page = links_folder(folder.path) / "open.html"
    page.unlink(missing_ok=True)
    page.touch(mode=0o600)
    page.write_text(f'<meta http-equiv="refresh" content="0; url={escape(link)}"><a href="{escape(link)}">Console</a>')
    return webbrowser.open(page.as_uri())


def logs(
    name: Annotated[str, typer.Argument(help="A process, such as web or gpu; up is the supervisor. Else all.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is logged, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines of each process, the last ones.")] = 20,
    data_dir: DataDir = None,
) -> None:
    """Show the logs of the processes of `nightmill up`, also after it has ended."""
    from cli.up.service import LogFile

    folder = _folder(data_dir)
    log_files = {path.stem: LogFile(path) for path in sorted(folder.logs.glob("*.log"))}
    if name and name not in log_files:
        known = f"there are {', '.join(log_files)}" if log_files else "name another folder with --data-dir"
        raise CliError(f"{folder.logs} has no log of '{name}'; {known}")
    if not log_files:
        raise CliError(f"{folder.path} has no logs: nothing was started there; name another folder with --data-dir")
    shown = {name: log_files[name]} if name else log_files
    for process, log in shown.items():
        _print(process, log.tail(lines).splitlines(), alone=bool(name))
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


def down(options: HostOptions) -> None:
    """Stop what `nightmill up` runs, and wait for its end. Workers return their unfinished work, as after Ctrl-C."""
    from cli.up.background import stop

    folder = _folder(options.data_dir)
    if not stop(folder):
        raise CliError(f"nothing runs in {folder.path}; name another folder with --data-dir")
    options.show({"data_dir": str(folder.path), "stopped": True}, f"stopped what ran in {folder.path}")


def _folder(data_dir: Any) -> "DataFolder":
    from cli.up.effective import effective
    from cli.up.folder import DataFolder

    return DataFolder(effective(data_dir=data_dir).data_dir)
