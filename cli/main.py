"""The command's table of contents. `nightmill --help` reads it aloud."""

import os
import sys
from typing import Annotated, Any

import typer

from cli.commands import (
    audit,
    deployment,
    files,
    indexes,
    jobs,
    keys,
    models,
    pauses,
    schedules,
    sources,
    stores,
    vectors,
    webhook_endpoints,
    webhooks,
)
from cli.commands.chat import chat
from cli.commands.embed_eval import embed_eval
from cli.commands.explain import explain
from cli.commands.graph import graph
from cli.commands.jobs import watch
from cli.commands.results import results
from cli.commands.run_batch import run_batch
from cli.commands.submit import submit
from cli.commands.usage import usage
from cli.commands.vllm_flags import TakesFlags
from cli.demo.command import demo
from cli.doctor.command import doctor
from cli.errors import Trouble
from cli.groups import Group
from cli.terminal import say
from cli.up.command import up
from jobs.errors import NightmillError
from jobs.platform.secret_files import anchor


def _models_file_error() -> type[Exception]:
    """Return the error of a models file. Reading such files takes libraries that take long to import."""
    from jobs.fleet.models_file import ModelsFileError

    return ModelsFileError


class Command(Group):
    """A command whose failures are one line on standard error."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            anchor(os.environ)
            return super().__call__(*args, **kwargs)
        except BrokenPipeError:  # whoever read our output has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except Exception as error:
            if not isinstance(error, (Trouble, NightmillError, OSError, _models_file_error())):
                raise
            first, *more = str(error).split("\n")
            say(f"nightmill: {first}", err=True)
            for line in more:
                say(f"  {line}", err=True)
            raise SystemExit(1) from None


app = Command(
    name="nightmill",
    help="Batches for language models on your own machines, through the OpenAI SDK.",
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            say(f"nightmill {version('nightmill')}")
        except PackageNotFoundError:
            say("nightmill (not installed: run from its checkout)")
        raise typer.Exit


@app.callback()
def nightmill(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Batches for language models on your own machines, through the OpenAI SDK."""


app.command()(up)
app.command()(deployment.status)
app.command()(deployment.logs)
app.command()(deployment.down)
app.command()(demo)
app.command()(submit)
app.command()(chat)
app.command("jobs")(jobs.jobs)
app.command()(watch)
app.command()(results)
_PASSING = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command("run-batch", cls=TakesFlags, context_settings=_PASSING)(run_batch)
app.command("embed-eval")(embed_eval)
app.command()(explain)
app.command()(graph)
app.command()(jobs.cancel)
app.command()(jobs.retry)
app.command()(doctor)
app.command()(usage)
app.command()(pauses.workers)
app.command()(pauses.pause)
app.command()(pauses.resume)
app.command()(pauses.drain)
app.add_typer(files.app, name="files")
app.add_typer(stores.app, name="stores")
app.add_typer(models.app, name="models")
app.add_typer(schedules.app, name="schedules")
app.add_typer(sources.app, name="sources")
app.add_typer(indexes.app, name="indexes")
app.add_typer(keys.app, name="keys")
app.add_typer(vectors.app, name="vectors")
app.add_typer(audit.app, name="audit")
webhooks.app.command()(webhook_endpoints.create)
webhooks.app.command("list")(webhook_endpoints.list_)
webhooks.app.command("test")(webhook_endpoints.send_test)
webhooks.app.command()(webhook_endpoints.deliveries)
webhooks.app.command()(webhook_endpoints.delete)
app.add_typer(webhooks.app, name="webhooks")
