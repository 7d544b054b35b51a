"""The plan of a migration: what becomes of each object, why, and the requests that make it here. Nothing is sent.

A planner is one row of `PLANNERS`, in the order in which objects are made. Another kind is another row.
"""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

from cli.errors import CliError
from cli.migrate.outcomes import MigrationKind, MigrationOutcome, ReportRow
from cli.migrate.source import MigrationSource, Object, Opener, SourceFile, id_of

#: The purposes that an upload may have.
PURPOSES: Final = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")
#: The fields of a version of a prompt; all other settings of it are parameters.
_VERSION_FIELDS: Final = ("model", "instructions", "messages", "tools", "tool_choice", "text", "variables")
_SHOWN_BYTES: Final = 16_384
_MAX_NAME: Final = 150  # characters of the name of a file, from its end
_ODD: Final = re.compile(r"[^\w. -]", re.ASCII)
#: The key of the metadata that holds the id elsewhere of an object without an `imported_from`.
ORIGIN: Final = "imported_from"
_MAX_METADATA: Final = 16
_MAX_BATCH: Final = 500  # files of one request
_DATE: Final = re.compile(r"-\d{4}-\d{2}-\d{2}$")
#: The fields of a stored chat completion that were in its request.
_REQUEST_FIELDS: Final = (
    "model", "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "response_format", "tools",
    "tool_choice",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The models of this server: `names` instead of those elsewhere, and the ones that are `served`.

    With `train` those that were tuned elsewhere are trained again.
    """

    names: Mapping[str, str]
    served: frozenset[str]
    train: bool = False

    def base(self, name: str) -> str | None:
        """Return the model here to train instead of one elsewhere, which may be named without its date."""
        return self.names.get(name) or self.names.get(_DATE.sub("", name)) or (name if name in self.served else None)

    def rename(self, value: Any) -> tuple[Any, list[str]]:
        """Return a value with the models here in all its fields `model`, and what there is to say about them."""
        named = sorted(set(_model_names(value)))
        remarks = [f"{name} becomes {self.names[name]}" for name in named if name in self.names]
        unserved = [name for name in named if name not in self.names and name not in self.served]
        remarks += [f"no model {name} is served here: name one with --map {name}=MODEL" for name in unserved]
        return _rename_models(value, self.names), remarks


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """A POST that a step consists of."""

    path: str
    body: Object


@dataclass(frozen=True, slots=True)
class MigrationStep:
    """The plan of one object: its row of the report, the requests that make it, and the file that goes with it.

    `file` has the name and the purpose of the upload of `content`. `parent_id` is the eval of a run, elsewhere.
    """

    row: ReportRow
    requests: tuple[PlannedRequest, ...] = ()
    content: Opener | None = None
    file: tuple[str, str] = ("", "")
    parent_id: str = ""

    @property
    def is_sent(self) -> bool:
        """Return whether there is something to make."""
        return bool(self.requests or self.content)


Planner = Callable[[MigrationSource, ModelNames], Iterator[MigrationStep]]


def plan(source: MigrationSource, models: ModelNames) -> Iterator[MigrationStep]:
    """Yield a step for each object of a source, and one for each thing that was not readable."""
    for planner in PLANNERS.values():
        yield from planner(source, models)
    yield from map(MigrationStep, source.remarks())


def _step(kind: MigrationKind, saved: Object, make: Callable[[], MigrationStep], id_field: str = "id") -> MigrationStep:
    """Return the step that `make` returns; for an object that is broken, a loss."""
    try:
        return make()
    except (CliError, RecursionError) as error:
        reason = str(error) if isinstance(error, CliError) else "it is nested too deeply"
        return MigrationStep(ReportRow(kind, str(saved.get(id_field)), None, MigrationOutcome.LOST, reason))


def _row(kind: MigrationKind, origin_id: str, remarks: list[str]) -> ReportRow:
    """Return the row of an object that comes over: as it is, or differently for a reason."""
    outcome = MigrationOutcome.DIFFERENT if remarks else MigrationOutcome.SAME
    return ReportRow(kind, origin_id, None, outcome, "; ".join(remarks))


# ── files ──


def _plan_files(source: MigrationSource, _models: ModelNames) -> Iterator[MigrationStep]:
    for file in source.files():
        yield _step(MigrationKind.FILE, file.object, partial(_file_step, file))
    for saved in source.evals():
        rows = partial(source.rows, str(saved.get("id")))
        if next(rows(), None) is not None:
            yield _step(MigrationKind.FILE, saved, partial(_rows_step, saved, rows))


def _file_step(file: SourceFile) -> MigrationStep:
    file_id, purpose = id_of(file.object), file.object.get("purpose")
    if file.content is None:
        raise CliError(file.remark or "its content is not there")
    remarks = [*filter(None, [file.remark]), "it has a new id, and the old one before its name"]
    if purpose not in PURPOSES:
        remarks.append(f"its purpose {purpose} becomes user_data")
    name = _ODD.sub("_", str(file.object.get("filename") or "file"))
    name = name if name.startswith(file_id) else f"{file_id}.{name[-_MAX_NAME:]}"
    upload = (name, purpose if purpose in PURPOSES else "user_data")
    return MigrationStep(_row(MigrationKind.FILE, file_id, remarks), content=file.content, file=upload)


def _rows_step(saved: Object, rows: Callable[[], Iterator[Object]]) -> MigrationStep:
    """Return the step that makes a file of the rows of an eval, for new runs."""
    name = f"{id_of(saved)}.rows"
    lines = partial(lines_file, lambda: ({"item": row} for row in rows()))
    row = _row(MigrationKind.FILE, name, ["the rows of the eval become a file, which new runs may name"])
    return MigrationStep(row, content=lines, file=(f"{name}.jsonl", "evals"))


@contextmanager
def lines_file(values: Callable[[], Iterator[Object]]) -> Iterator[Path]:
    """Yield the path of a temporary file with a value on each line."""
    with tempfile.TemporaryDirectory(prefix="nightmill-") as folder:
        path = Path(folder) / "lines.jsonl"
        with path.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(value) + "\n" for value in values())
        yield path


# ── prompts ──


def _plan_prompts(source: MigrationSource, models: ModelNames) -> Iterator[MigrationStep]:
    for saved in source.prompts():
        id_field = "openai_prompt_id" if "openai_prompt_id" in saved else "id"
        yield _step(MigrationKind.PROMPT, saved, partial(_prompt_step, saved, id_field, models), id_field)


def _prompt_step(saved: Object, id_field: str, models: ModelNames) -> MigrationStep:
    """Return the requests for a prompt: it with its first version, each version, and the one in production."""
    prompt_id, versions = id_of(saved, id_field), saved.get("versions")
    if not isinstance(versions, list) or not versions or not all(map(_is_version, versions)):
        raise CliError("its 'versions' is not a list of objects with a number as 'version'")
    if not prompt_id.startswith("pmpt_"):
        raise CliError("its id does not begin with pmpt_")
    remarks: list[str] = []
    bodies = []
    for version in sorted(versions, key=lambda version: int(version["version"])):
        content, about = _version_content(version, models)
        remarks += [remark for remark in about if remark not in remarks]
        bodies.append({"version": str(version["version"]), **content})
    production = saved.get("production_version") or saved.get("default_version")
    if str(production) not in [body["version"] for body in bodies]:
        if production is not None:
            remarks.append(f"its version in production, {production}, is not there: the newest one takes its place")
        production = bodies[-1]["version"]
    head = {"id": prompt_id} | {name: saved[name] for name in ("name", "metadata") if saved.get(name)}
    requests = (
        PlannedRequest("/prompts", head | bodies[0]),
        *(PlannedRequest(f"/prompts/{prompt_id}/versions", body) for body in bodies),
        PlannedRequest(
            f"/prompts/{prompt_id}",
            {
                "default_version": str(production),
                "labels": (saved.get("labels") or {}) | {"production": str(production)},
            },
        ),
    )
    return MigrationStep(_row(MigrationKind.PROMPT, prompt_id, remarks), requests)


def _is_version(value: Any) -> bool:
    return isinstance(value, dict) and str(value.get("version")).isdecimal()


def _version_content(version: Object, models: ModelNames) -> tuple[Object, list[str]]:
    """Return the content of a version, its fields and its other settings as parameters, and what there is to say.

    Raises: CliError.
    """
    from jobs.prompts import versions
    from jobs.requests.values import RESPONSE_TOOLS

    settings = {**_mapping(version, "config"), **_mapping(version, "parameters")}
    fields = {name: version.get(name, settings.pop(name, None)) for name in _VERSION_FIELDS}
    parameters = {name: value for name, value in settings.items() if value is not None}
    content, remarks = models.rename({name: value for name, value in fields.items() if value is not None})
    tools = content.get("tools")
    kinds = [str(tool.get("type")) for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    remarks += [f"requests with its tool {kind} are refused here" for kind in kinds if kind not in RESPONSE_TOOLS]
    remarks += [f"the setting {name} is left out" for name in parameters if name not in versions.PARAMETERS]
    content["parameters"] = {name: value for name, value in parameters.items() if name in versions.PARAMETERS}
    return content, remarks


def _mapping(value: Object, name: str) -> Object:
    inner = value.get(name) or {}
    if not isinstance(inner, dict):
        raise CliError(f"'{name}' of a version is not an object")
    return inner


# ── evals ──


def _plan_evals(source: MigrationSource, models: ModelNames) -> Iterator[MigrationStep]:
    for saved in source.evals():
        yield _step(MigrationKind.EVAL, saved, partial(_eval_step, saved, models))


def _eval_step(saved: Object, models: ModelNames) -> MigrationStep:
    eval_id, config, criteria = id_of(saved), saved.get("data_source_config"), saved.get("testing_criteria")
    if not isinstance(config, dict) or not isinstance(criteria, list):
        raise CliError(f"{eval_id} is not an eval: it has no data_source_config or no testing_criteria")
    kept, remarks = _criteria(criteria, models)
    if config.get("type") != "custom":
        remarks.append("its new runs read the answers that are stored here")
    body = {
        "imported_from": eval_id,
        "name": saved.get("name") or "Untitled",
        "data_source_config": _config(config),
        "testing_criteria": kept,
    } | ({"metadata": saved["metadata"]} if saved.get("metadata") else {})
    return MigrationStep(_row(MigrationKind.EVAL, eval_id, remarks), (PlannedRequest("/evals/imports", body),))


def _criteria(criteria: list[Any], models: ModelNames) -> tuple[list[Object], list[str]]:
    """Return the criteria that can be graded here, and what there is to say. Raises CliError if there are none."""
    from pydantic import ValidationError

    from jobs.evals.graders import parse_grader

    kept, remarks = [], []
    for criterion in criteria:
        definition, about = models.rename(_without_nulls(criterion))
        name = definition.get("name") if isinstance(definition, dict) else None
        try:
            parse_grader({field: value for field, value in definition.items() if field != "id"})
        except (ValidationError, AttributeError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "it is not an object"
            remarks.append(f"the criterion {name} is left out: {reason}")
            continue
        kept.append(definition)
        remarks += [remark for remark in about if remark not in remarks]
    if not kept:
        raise CliError("; ".join(remarks) or "it has no criteria")
    names = Counter(criterion["name"] for criterion in kept if criterion.get("id"))
    remarks += [f"the criteria {name} are named by their ids" for name, count in names.items() if count > 1]
    return kept, remarks


def _config(shown: Object) -> Object:
    """Return the config that was sent, from the one that is shown."""
    if shown.get("type") != "custom":
        return {name: shown[name] for name in ("type", "metadata") if shown.get(name)}
    schema = shown.get("schema", shown.get("schema_"))  # `model_dump()` of the SDK has its own name of the field
    properties = schema.get("properties") if isinstance(schema, dict) else None
    properties = properties if isinstance(properties, dict) else {}
    item = properties.get("item", {"type": "object"})
    return {"type": "custom", "item_schema": item, "include_sample_schema": "sample" in properties}


def _without_nulls(value: Any) -> Any:
    """Return a grader without the fields that are null: saved objects have all fields of their type."""
    if isinstance(value, dict):
        fields = {name: inner for name, inner in value.items() if inner is not None}
        return {name: inner if name == "schema" else _without_nulls(inner) for name, inner in fields.items()}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


# ── runs ──


def _plan_runs(source: MigrationSource, models: ModelNames) -> Iterator[MigrationStep]:
    for saved in source.evals():
        for run in source.runs(str(saved.get("id"))):
            yield _step(MigrationKind.EVAL_RUN, run, partial(_run_step, source, saved, run, models))


def _run_step(source: MigrationSource, saved: Object, run: Object, models: ModelNames) -> MigrationStep:
    """Return the step of a run, whose history names the models that answered then."""
    run_id = id_of(run)
    try:
        eval_id = _eval_step(saved, models).row.origin_id
    except CliError as error:
        raise CliError(f"its eval does not come over: {error}") from None
    if run.get("status") != "completed":
        raise CliError(f"its status is {run.get('status')}: only completed runs come over")
    if next(source.items(run), None) is None:
        raise CliError("it has no output items")
    data_source = run.get("data_source")
    data_source = dict(data_source) if isinstance(data_source, dict) else {"type": "jsonl"}
    inner = data_source.get("source")
    if isinstance(inner, dict) and len(json.dumps(inner)) > _SHOWN_BYTES:
        data_source["source"] = {**inner, "content": []}
    body = {"imported_from": run_id, "data_source": data_source}
    body |= {name: run[name] for name in ("name", "model", "metadata") if run.get(name)}
    request = PlannedRequest(f"/evals/{eval_id}/imports", body)
    items: Callable[[], AbstractContextManager[Path]] = partial(lines_file, partial(source.items, run))
    upload = (f"{run_id}.output_items.jsonl", "evals")
    return MigrationStep(ReportRow(MigrationKind.EVAL_RUN, run_id), (request,), items, upload, eval_id)


# ── vector stores ──


def _plan_stores(source: MigrationSource, _models: ModelNames) -> Iterator[MigrationStep]:
    for saved in source.vector_stores():
        yield _step(MigrationKind.VECTOR_STORE, saved, partial(_store_step, source, saved))


def _store_step(source: MigrationSource, saved: Object) -> MigrationStep:
    """Return the requests for a store, and for its files, which are named by their ids elsewhere."""
    store_id, total = id_of(saved), (saved.get("file_counts") or {}).get("total") or 0
    if saved.get("status") == "expired":
        raise CliError("it has expired")
    files = [_attachment(file) for file in source.store_files(store_id) if file.get("status") == "completed"]
    if total and not files:
        raise CliError("its files are not there")
    remarks = ["its texts are embedded by the embedding model of this deployment"]
    if total > len(files):
        remarks.append(f"{total - len(files)} of its files do not come over: it has no text of them")
    fields = {name: saved[name] for name in ("name", "description", "expires_after") if saved.get(name)}
    body = fields | {"metadata": _origin_metadata(saved, store_id)}
    batches = [files[at : at + _MAX_BATCH] for at in range(0, len(files), _MAX_BATCH)]
    requests = (
        PlannedRequest("/vector_stores", body),
        *(PlannedRequest("/file_batches", {"files": batch}) for batch in batches),
    )
    return MigrationStep(_row(MigrationKind.VECTOR_STORE, store_id, remarks), requests)


def _attachment(file: Object) -> Object:
    """Return the file of a store as a request names it. `other` is the chunking of files that OpenAI cut long ago."""
    body = {"file_id": id_of(file)} | ({"attributes": file["attributes"]} if file.get("attributes") else {})
    chunking = file.get("chunking_strategy") or {}
    return body | ({"chunking_strategy": chunking} if chunking.get("type") == "static" else {})


def _origin_metadata(saved: Object, origin_id: str) -> dict[str, str]:
    """Return the metadata of an object with the id elsewhere, by which the object is found again."""
    metadata = dict(list((saved.get("metadata") or {}).items())[: _MAX_METADATA - 1])
    return metadata | {ORIGIN: origin_id}


# ── fine-tuning jobs ──


def _plan_jobs(source: MigrationSource, models: ModelNames) -> Iterator[MigrationStep]:
    for saved in source.fine_tuning_jobs():
        yield _step(MigrationKind.FINE_TUNING_JOB, saved, partial(_job_step, saved, models))


def _job_step(saved: Object, models: ModelNames) -> MigrationStep:
    """Return the request for a training on the same files, which are named by their ids elsewhere."""
    from jobs.finetuning.examples import Method

    job_id, base = id_of(saved), str(saved.get("model"))
    if saved.get("status") != "succeeded":
        raise CliError(f"its status is {saved.get('status')}: only succeeded jobs come over")
    method = saved.get("method") or {"type": "supervised"}
    kind = method.get("type")
    if kind not in get_args(Method):
        raise CliError(f"the method {kind} is not trained here; its files come over")
    chosen, remarks = _hyperparameters((method.get(kind) or saved).get("hyperparameters") or {})
    model = models.base(base)
    start = "" if models.train else "not started: --train trains it here"
    if model is None:
        advice = f"--map {base}=MODEL names its base"
        if models.train:
            raise CliError(f"no model {base} is served here: {advice}")
        start += f", and {advice}"
    remarks = [*filter(None, [start]), f"its weights are trained again, on {model or 'a base of yours'}", *remarks]
    suffix = saved.get("user_provided_suffix")
    body = {
        "model": model,
        "training_file": id_of(saved, "training_file"),
        "method": {"type": kind, kind: {"hyperparameters": chosen}},
        "metadata": _origin_metadata(saved, job_id),
    } | {name: saved[name] for name in ("validation_file", "seed") if saved.get(name) is not None}
    body |= {"suffix": suffix} if suffix else {}
    requests = (PlannedRequest("/fine_tuning/jobs", body),) if models.train else ()
    return MigrationStep(_row(MigrationKind.FINE_TUNING_JOB, job_id, remarks), requests)


def _hyperparameters(given: Object) -> tuple[Object, list[str]]:
    """Return the hyperparameters that are accepted here, and what there is to say about them."""
    from pydantic import ValidationError

    from jobs.finetuning.payload import Hyperparameters

    chosen, remarks = {}, []
    for name in Hyperparameters.model_fields.keys() & given.keys():
        try:
            Hyperparameters.model_validate({name: given[name]})
        except ValidationError:
            remarks.append(f"{name} {given[name]} becomes auto")
        else:
            chosen[name] = given[name]
    if "learning_rate_multiplier" in chosen:
        remarks.append("learning_rate_multiplier multiplies the rate of the trainer here")
    return chosen, remarks


# ── chat completions ──


def _plan_chats(source: MigrationSource, _models: ModelNames) -> Iterator[MigrationStep]:
    for saved in source.chat_completions():
        yield _step(MigrationKind.CHAT_COMPLETION, saved, partial(_chat_step, source, saved))


def _chat_step(source: MigrationSource, saved: Object) -> MigrationStep:
    """Return the step of a stored chat completion. Its messages are read when it is sent."""
    body = partial(lines_file, lambda: iter([_chat_body(source, saved)]))
    return MigrationStep(ReportRow(MigrationKind.CHAT_COMPLETION, id_of(saved)), content=body)


def _chat_body(source: MigrationSource, saved: Object) -> Object:
    messages = [_request_message(message) for message in source.messages(id_of(saved))]
    if not messages:
        raise CliError("its messages are not there")
    request = {name: saved[name] for name in _REQUEST_FIELDS if saved.get(name) is not None} | {"messages": messages}
    response = {name: value for name, value in saved.items() if name not in ("messages", "metadata")}
    body = {"imported_from": saved["id"], "request": request, "response": response}
    return body | ({"metadata": saved["metadata"]} if saved.get("metadata") else {})


def _request_message(shown: Object) -> Object:
    """Return a message as it was sent, from the one that is shown."""
    kept = {name: value for name, value in shown.items() if name not in ("id", "content_parts") and value is not None}
    return kept | ({"content": shown["content_parts"]} if shown.get("content_parts") else {})


# ── aliases ──


def _plan_aliases(_source: MigrationSource, models: ModelNames) -> Iterator[MigrationStep]:
    """Yield an alias for each name of `--map`, so that code that names the model elsewhere goes on."""
    for name, model in models.names.items():
        row = _row(MigrationKind.ALIAS, name, [f"requests for it are answered by {model}"])
        yield MigrationStep(row, (PlannedRequest("/aliases", {"id": name, "model": model}),))


PLANNERS: Final[Mapping[MigrationKind, Planner]] = {
    MigrationKind.FILE: _plan_files,
    MigrationKind.PROMPT: _plan_prompts,
    MigrationKind.EVAL: _plan_evals,
    MigrationKind.EVAL_RUN: _plan_runs,
    MigrationKind.VECTOR_STORE: _plan_stores,
    MigrationKind.FINE_TUNING_JOB: _plan_jobs,
    MigrationKind.CHAT_COMPLETION: _plan_chats,
    MigrationKind.ALIAS: _plan_aliases,
}


def _model_names(value: Any) -> Iterator[str]:
    """Yield the models that are named in a value, at any depth."""
    if isinstance(value, dict):
        if isinstance(model := value.get("model"), str):
            yield model
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _model_names(inner)


def _rename_models(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            name: names.get(inner, inner)
            if name == "model" and isinstance(inner, str)
            else _rename_models(inner, names)
            for name, inner in value.items()
        }
    return [_rename_models(inner, names) for inner in value] if isinstance(value, list) else value
