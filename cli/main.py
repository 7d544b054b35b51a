"""The list of all commands, in the order of `nightmill --help`."""

import os
import sys
from typing import Annotated, Any

import typer

from cli.commands import (
    aliases,
    audit,
    budgets,
    datasets,
    deployment,
    drift,
    evals,
    feedback,
    files,
    finetune,
    indexes,
    jobs,
    keys,
    limits,
    model_versions,
    models,
    online_evals,
    pauses,
    pipelines,
    prices,
    projects,
    promote,
    prompts,
    schedules,
    sources,
    stores,
    usage,
    users,
    vectors,
    webhook_endpoints,
    webhooks,
)
from cli.commands.chat import chat
from cli.commands.explain import explain
from cli.commands.graph import graph
from cli.commands.jobs import watch
from cli.commands.results import results
from cli.commands.run_batch import run_batch
from cli.commands.submit import submit
from cli.demo.command import demo
from cli.doctor.command import doctor
from cli.errors import CliError
from cli.groups import Group
from cli.migrate import command as migrate
from cli.terminal import say
from cli.up.command import up
from jobs.errors import NightmillError
from jobs.platform.secret_files import anchor


def _models_file_error() -> type[Exception]:
    """Return the error of a models file. Reading such files takes libraries that take long to import."""
    from jobs.fleet.models_file import ModelsFileError

    return ModelsFileError


def _message(error: Exception) -> str:
    """Return the text of an error. That of a file names the file and the reason, without a number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


class Command(Group):
    """A command whose failures are one line on standard error."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            anchor(os.environ)
            return super().__call__(*args, **kwargs)
        except BrokenPipeError:  # the reader of the output has closed it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except Exception as error:
            if not isinstance(error, (CliError, NightmillError, OSError, _models_file_error())):
                raise
            first, *more = _message(error).split("\n")
            say(f"nightmill: {first}", err=True)
            for line in more:
                say(f"  {line}", err=True)
            raise SystemExit(1) from None


app = Command(
    name="nightmill",
    help="Batches for language models on your own machines, through the OpenAI SDK.",
    pretty_exceptions_enable=False,
)


def _version(requested: bool) -> None:
    if requested:
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


_RUN, _JOBS, _DATA, _OPERATE = "Deployment", "Requests and jobs", "Files, stores and webhooks", "Operation"
app.command(rich_help_panel=_RUN)(up)
app.command(rich_help_panel=_RUN)(deployment.status)
app.command(rich_help_panel=_RUN)(deployment.console)
app.command(rich_help_panel=_RUN)(deployment.logs)
app.command(rich_help_panel=_RUN)(deployment.down)
app.command(rich_help_panel=_RUN)(demo)
app.command(rich_help_panel=_JOBS)(submit)
app.command(rich_help_panel=_JOBS)(chat)
app.command("jobs", rich_help_panel=_JOBS)(jobs.jobs)
app.command(rich_help_panel=_JOBS)(watch)
app.command(rich_help_panel=_JOBS)(results)
_PASSING = {"allow_extra_args": True, "ignore_unknown_options": True}  # `run-batch` names vLLM's flags in its refusal
app.command("run-batch", context_settings=_PASSING, rich_help_panel=_JOBS)(run_batch)
app.command(rich_help_panel=_JOBS)(explain)
app.command(rich_help_panel=_JOBS)(graph)
app.command(rich_help_panel=_JOBS)(jobs.cancel)
app.command(rich_help_panel=_JOBS)(jobs.retry)
app.command(rich_help_panel=_RUN)(doctor)
app.command(rich_help_panel=_OPERATE)(pauses.workers)
app.command(rich_help_panel=_OPERATE)(pauses.pause)
app.command(rich_help_panel=_OPERATE)(pauses.resume)
app.command(rich_help_panel=_OPERATE)(pauses.drain)
app.add_typer(files.app, name="files", rich_help_panel=_DATA)
app.add_typer(stores.app, name="stores", rich_help_panel=_DATA)
models.app.add_typer(model_versions.app)
app.add_typer(models.app, name="models", rich_help_panel=_OPERATE)
app.add_typer(prompts.app, name="prompts", rich_help_panel=_JOBS)
app.add_typer(aliases.app, name="aliases", rich_help_panel=_OPERATE)
app.add_typer(schedules.app, name="schedules", rich_help_panel=_JOBS)
app.add_typer(pipelines.app, name="pipelines", rich_help_panel=_JOBS)
app.add_typer(promote.app, name="promote", rich_help_panel=_JOBS)
app.add_typer(finetune.app, name="finetune", rich_help_panel=_JOBS)
app.add_typer(evals.app, name="evals", rich_help_panel=_JOBS)
app.add_typer(feedback.app, name="feedback", rich_help_panel=_JOBS)
app.add_typer(drift.app, name="drift", rich_help_panel=_JOBS)
app.add_typer(online_evals.app, name="online-evals", rich_help_panel=_JOBS)
app.add_typer(datasets.app, name="datasets", rich_help_panel=_DATA)
app.add_typer(migrate.app, name="migrate", rich_help_panel=_DATA)
app.add_typer(sources.app, name="sources", rich_help_panel=_DATA)
app.add_typer(indexes.app, name="indexes", rich_help_panel=_DATA)
app.add_typer(projects.app, name="projects", rich_help_panel=_OPERATE)
app.add_typer(keys.app, name="keys", rich_help_panel=_OPERATE)
app.add_typer(limits.app, name="limits", rich_help_panel=_OPERATE)
app.add_typer(budgets.app, name="budgets", rich_help_panel=_OPERATE)
app.add_typer(usage.app, name="usage", rich_help_panel=_OPERATE)
app.add_typer(prices.app, name="prices", rich_help_panel=_OPERATE)
app.add_typer(users.app, name="users", rich_help_panel=_OPERATE)
app.add_typer(vectors.app, name="vectors", rich_help_panel=_OPERATE)
app.add_typer(audit.app, name="audit", rich_help_panel=_OPERATE)
webhooks.app.command()(webhook_endpoints.create)
webhooks.app.command("list")(webhook_endpoints.list_)
webhooks.app.command("test")(webhook_endpoints.send_test)
webhooks.app.command()(webhook_endpoints.deliveries)
webhooks.app.command()(webhook_endpoints.delete)
app.add_typer(webhooks.app, name="webhooks", rich_help_panel=_DATA)
