"""Takes one guard out of the code at a time and runs the fast tests of the ledger: each must notice.

`python -m tests.architecture.mutants` prints a line of JSON for each mutant: its name, and whether it was caught.
Everything is imported once; each mutant is a fork in which one module's changed source is executed over the module
itself, so that whoever has imported it, or a class of it, calls the changed functions. A guard that is in the schema
is taken out of the revision that makes it: the tests' database is migrated by a copy of the folder that says so.
"""

import ast
import contextlib
import importlib
import io
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from jobs import bootstrap

_AT_ONCE = 2
_REVISIONS = "migrations.versions."
#: Only what the configuration speaks of: to load all that is installed takes longer than the tests.
_PLUGINS = ("pytest_timeout", "pytest_asyncio.plugin")
_UNIT = "tests/unit/jobs"
LEDGER = tuple(f"{_UNIT}/ledger/test_{name}.py" for name in ("ledger", "ending_jobs", "stopping_jobs"))
SHARDS = tuple(f"{_UNIT}/ledger/test_{name}.py" for name in ("shards", "shard_queues"))
OUTBOX, EVENTS, AUDIT, STATES, PAUSES, MEASURES, DEPENDENCIES = (
    (f"{_UNIT}/ledger/test_{name}.py",)
    for name in ("outbox", "events", "audit", "states", "pauses", "measures", "dependencies")
)
TIMES, KEYS, TABLES = (
    (f"{_UNIT}/{name}.py",) for name in ("schedules/test_schedules", "security/test_keys", "test_constraints")
)
RECORDER, CHECKPOINTS = ((f"tests/unit/workers/finetuning/test_{name}.py",) for name in ("recorder", "checkpoints"))
WORLD = ("tests/simulation/test_simulation.py::test_lost_messages_only_delay_jobs",)

Change = Callable[[str], str]


def without(function: str, call: str) -> Change:
    """Remove this call from the function."""

    class Remover(ast.NodeTransformer):
        removed = 0
        inside = False

        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
            self.inside = node.name == function
            self.generic_visit(node)
            self.inside = False
            return node

        def visit_Expr(self, node: ast.Expr) -> ast.AST:
            if self.inside and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == call:
                self.removed += 1
                return ast.Pass()
            return node

    def change(source: str) -> str:
        remover = Remover()
        tree = remover.visit(ast.parse(source))
        assert remover.removed, f"{function} does not call {call}"
        return ast.unparse(ast.fix_missing_locations(tree))

    return change


def instead(old: str, new: str, *, inside: str) -> Change:
    """In this function (as `ast` would write it) the first `old` is `new`."""

    def change(source: str) -> str:
        tree = ast.parse(source)
        found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == inside]
        text = ast.unparse(found[0])
        assert old in text, f"{inside} does not say {old}"
        found[0].body = ast.parse(text.replace(old, new, 1)).body[0].body  # type: ignore[attr-defined]
        return ast.unparse(ast.fix_missing_locations(tree))

    return change


def unconstrained(constraint: str) -> Change:
    """Create the table without the key or the uniqueness constraint of this name."""

    class Remover(ast.NodeTransformer):
        removed = 0

        def visit_Call(self, node: ast.Call) -> ast.AST:
            self.generic_visit(node)
            left = [one for one in node.args if not (isinstance(one, ast.Call) and _named(one) == constraint)]
            self.removed += len(node.args) - len(left)
            node.args = left
            if ast.unparse(node.func) == "create" and f"pk_{ast.literal_eval(node.args[0])}" == constraint:
                node.args[1] = ast.Constant("")
                self.removed += 1
            return node

    def change(source: str) -> str:
        remover = Remover()
        tree = remover.visit(ast.parse(source))
        assert remover.removed == 1, f"{remover.removed} constraints are called {constraint}"
        return ast.unparse(ast.fix_missing_locations(tree))

    return change


def _named(call: ast.Call) -> object:
    return next(
        (word.value.value for word in call.keywords if word.arg == "name" and isinstance(word.value, ast.Constant)),
        None,
    )


def both(first: Change, second: Change) -> Change:
    return lambda source: second(first(source))


@dataclass(frozen=True)
class Mutant:
    name: str
    module: str
    change: Change
    tests: tuple[str, ...]


_KNOWN_SEGMENT = "_exists(session, statements.SEGMENT_IS_THERE, **its, its_seq=seq)"
_SAME_STATE, _ANY_STATE = "_job.c.state == bindparam('its_state')", "bindparam('its_state') != ''"
_SAME_EPOCH, _ANY_EPOCH = "_job.c.epoch == _ITS_EPOCH", "_ITS_EPOCH > -1"
_KNOWN_SHARD = "_exists(session, statements.SHARD_IS_THERE, its_job=claim.job.id, its_n=shards[0].n)"

MUTANTS = [
    # what one transaction holds
    Mutant("submit enqueues no message", "jobs.ledger.ledger", without("submit", "outbox.enqueue"), LEDGER),
    Mutant("submit tells no event", "jobs.ledger.ledger", without("submit", "_event"), LEDGER),
    Mutant("submit is not audited", "jobs.ledger.ledger", without("submit", "audit.record"), LEDGER),
    Mutant("a move tells no event", "jobs.ledger.ledger", without("_record_move", "_event"), STATES),
    Mutant("a move is not audited", "jobs.ledger.ledger", without("_record_move", "audit.record"), STATES),
    Mutant("an event is enqueued for no webhook", "jobs.ledger.ledger", without("_event", "events.fan_out"), LEDGER),
    Mutant("planning leads nowhere", "jobs.ledger.ledger", without("begin_running", "advance_job"), LEDGER),
    Mutant("stopping leads nowhere", "jobs.ledger.ledger", without("_stop", "advance_job"), LEDGER),
    Mutant("stopping keeps messages", "jobs.ledger.ledger", without("_stop", "outbox.forget"), LEDGER),
    Mutant("failing keeps messages", "jobs.ledger.ledger", without("record_failed_attempt", "outbox.forget"), LEDGER),
    Mutant("a lost job has no message", "jobs.ledger.ledger", without("release", "_enqueue_next_step"), LEDGER),
    # the guards of a job
    *(
        Mutant(name, "jobs.ledger.ledger", instead(guard, "False", inside=function), tests)
        for name, function, guard, tests in (
            ("any move is allowed", "move", "target not in MOVES[source]", STATES),
            ("a move from any state", "move", "job.state not in allowed", STATES),
            ("a move by any epoch", "move", "epoch not in (None, job.epoch)", LEDGER),
            (
                "finishing beside a pause",
                "claim_finish",
                "pauses.current_pauses(session).holds_finishing(worker_id)",
                LEDGER,
            ),
            (
                "going on before the last shard",
                "claim_finish",
                "session.scalar(statements.OPEN, {'its_job': job.id})",
                LEDGER,
            ),
            ("cancelling what has ended", "cancel", "JobState.CANCELLING not in MOVES[state]", LEDGER),
            ("expiring too early", "expire", "job.deadline > now()", LEDGER),
        )
    ),
    *(
        Mutant(name, "jobs.ledger.ledger", instead(guard, "True", inside=function), LEDGER)
        for name, function, guard in (
            ("finishing before the last shard", "advance_job", "not open_shards"),
            ("put back by any epoch", "release", "Job.epoch == epoch"),
            ("a job revoked while its heartbeats come", "revoke_lease", "Job.heartbeat == heartbeat"),
            ("a job fails for ever", "record_failed_attempt", "job.failed_attempts < tries"),
        )
    ),
    *(
        Mutant(name, "jobs.ledger.statements", instead(guard, there, inside=function), tests)
        for name, function, guard, there, tests in (
            ("the WHERE of a move", "_move", f"{_SAME_STATE}, {_SAME_EPOCH}", f"{_ANY_STATE}, {_ANY_EPOCH}", LEDGER),
            ("a held job is claimed", "_take", "_job.c.worker_id.is_(None)", "True", LEDGER),
            ("a job is claimed in any state", "_take", "_job.c.state.in_(CLAIMABLE[task])", "True", LEDGER),
            ("finishing beside running shards", "_take", "task is Task.FINISH", "False", LEDGER),
            ("anyone sends heartbeats", "_heartbeat", _SAME_EPOCH, _ANY_EPOCH, LEDGER),
            ("a commit by any epoch", "_claim_filter", "_shard.c.epoch == _ITS_EPOCH", _ANY_EPOCH, SHARDS),
            ("a running shard is claimed", "_take_shard", "_shard.c.state == ShardState.PENDING", "True", SHARDS),
        )
    ),
    Mutant(
        "a claimed message is published again", "jobs.ledger.ledger", without("claim", "outbox.remove_claimed"), LEDGER
    ),
    Mutant(
        "files before the guard",
        "jobs.ledger.ledger",
        instead("job = move", "session.add_all(files)\n    job = move", inside="close"),
        LEDGER,
    ),
    # the guards of a shard
    *(
        Mutant(name, "jobs.ledger.shards", instead(guard, "True", inside=function), SHARDS)
        for name, function, guard in (
            ("a try by any epoch", "_claim_filter", "Shard.epoch == claim.epoch"),
            ("a shard revoked while its heartbeats come", "revoke_lease", "Shard.heartbeat == heartbeat"),
        )
    ),
    *(
        Mutant(name, "jobs.ledger.shards", instead(guard, "False", inside=function), tests)
        for name, function, guard, tests in (
            (
                "a commit nobody fences",
                "commit",
                "not statements.changes_one(session, statements.COUNT, {**its, **more, **ending})",
                SHARDS,
            ),
            ("a segment that counts twice", "commit", _KNOWN_SEGMENT, SHARDS),
            (
                "a former holder of a shard sends heartbeats",
                "heartbeat",
                "not statements.changes_one(session, statements.HEARTBEAT_SHARD, held)",
                SHARDS,
            ),
            ("a cut that is made twice", "cut", _KNOWN_SHARD, LEDGER),
            ("a shard of a stopped job", "claim", "job.state != JobState.RUNNING", SHARDS),
            ("tries are not counted", "record_isolated_attempt", "line == claim.isolated_line", SHARDS),
        )
    ),
    Mutant(
        "no epoch is ever newer",
        "jobs.ledger.shards",
        both(
            instead("statements.TAKE_SHARD,", "statements.TAKE_SHARD.values(epoch=Shard.epoch),", inside="claim"),
            instead("epoch=Shard.epoch + 1, ", "", inside="_free"),
        ),
        SHARDS,
    ),
    Mutant("stalls are not counted", "jobs.ledger.shards", instead("1 if stalled else 0", "0", inside="_free"), SHARDS),
    Mutant("a lost shard has no message", "jobs.ledger.shards", without("_free", "outbox.enqueue"), SHARDS),
    Mutant("a zombie cuts", "jobs.ledger.shards", without("cut", "ledger.assert_claim"), LEDGER),
    # messages and leases
    Mutant(
        "a message enqueued twice",
        "jobs.ledger.outbox",
        instead(".on_conflict_do_nothing()", "", inside="_insert_messages"),
        OUTBOX,
    ),
    Mutant(
        "shards are published while being planned",
        "jobs.ledger.outbox",
        instead("Job.state.in_(states)", "Job.id == Job.id", inside="ready"),
        OUTBOX,
    ),
    Mutant("a clock set back", "jobs.ledger.outbox", instead(" + MAX_DELAY", " * 2", inside="_is_due"), OUTBOX),
    Mutant(
        "nothing is published again",
        "workers.dispatcher.loop",
        without("_maintain", "self._redeliver"),
        WORLD,
    ),
    Mutant(
        "no lease ends",
        "workers.dispatcher.leases",
        instead("at - since >= self._lease", "False", inside="find_stale"),
        WORLD,
    ),
    # jobs that wait for other jobs
    *(
        Mutant(name, f"jobs.ledger.{module}", instead(guard, there, inside=function), DEPENDENCIES)
        for name, module, function, guard, there in (
            ("a dependent does not wait", "ledger", "submit", "dependencies.is_open(session, job.id)", "False"),
            ("a waiting job is claimed", "statements", "_take", "_job.c.waiting_for.is_distinct_from", "bool"),
            ("a waiting job is enqueued", "ledger", "advance_job", "job.waiting_for == dependencies.WAITING", "False"),
            (
                "a dependent is released early",
                "ledger",
                "release_dependent",
                "dependencies.is_open(session, job_id)",
                "False",
            ),
            ("a dependent runs in vain", "ledger", "dependency_error", "failed is None", "True"),
            ("a dependent fails too early", "dependencies", "_has_predecessor", "after_id, state", "after_id"),
            ("a foreign job is waited for", "dependencies", "add", "Job.project_id == job.project_id", "Job.id != ''"),
            ("a failed job is waited for", "dependencies", "add", "states[job_id] in _HOPELESS", "False"),
        )
    ),
    Mutant(
        "a dependent is never released",
        "jobs.ledger.ledger",
        without("_record_move", "release_dependent"),
        DEPENDENCIES,
    ),
    Mutant("a dependency is not written", "jobs.ledger.ledger", without("submit", "dependencies.add"), DEPENDENCIES),
    # what the operator and the clock hold back
    Mutant(
        "a pause binds no shard",
        "jobs.ledger.shards",
        instead("pauses.refuses(", "False and (", inside="claim"),
        PAUSES,
    ),
    Mutant(
        "a pause binds no plan", "jobs.ledger.ledger", instead("pauses.refuses(", "False and (", inside="claim"), PAUSES
    ),
    Mutant("a refused message is lost", "jobs.ledger.pauses", without("refuses", "outbox.unpublish"), PAUSES),
    Mutant(
        "a job begins early",
        "jobs.ledger.outbox",
        instead("Job.not_before <= at", "Job.id == Job.id", inside="ready"),
        TIMES,
    ),
    Mutant(
        "a schedule fires early",
        "jobs.schedules.schedules",
        instead("schedule.next_at > at", "False", inside="_advance"),
        TIMES,
    ),
    # what the tables themselves refuse: two transactions may both have looked, and found nothing
    *(
        Mutant(f"a schema without {constraint}", f"{_REVISIONS}0047_baseline", unconstrained(constraint), tests)
        for constraint, tests in (
            ("pk_job", TABLES),
            ("pk_shard", TABLES),
            ("pk_segment", TABLES),
            ("uq_outbox_task_job_id_shard_n", OUTBOX),
            ("pk_event", TABLES),
            ("uq_event_id", TABLES),
            ("uq_audit_seal", TABLES),
            ("pk_file", TABLES),
            ("pk_idempotency", TABLES),
            ("pk_outcome", TABLES),
            ("pk_measure", MEASURES),
            ("pk_job_dependency", TABLES),
        )
    ),
    Mutant(
        "a schema without uq_project_live_name",
        f"{_REVISIONS}0049_organization_columns",
        instead(
            "'uq_project_live_name', 'project', ['name'], unique=True",
            "'uq_project_live_name', 'project', ['name']",
            inside="upgrade",
        ),
        KEYS,
    ),
    # trainings
    Mutant(
        "a former holder of a training records steps",
        "workers.finetuning.recorder",
        instead("shards.heartbeat(session, [(job_id, self._claim.n, self._claim.epoch)])", "False", inside="write"),
        RECORDER,
    ),
    Mutant(
        "a step that is trained again has two rows",
        "workers.finetuning.recorder",
        instead("['job_id', 'step']", "['job_id']", inside="write"),
        RECORDER,
    ),
    Mutant(
        "a checkpoint with another manifest is fetched",
        "workers.finetuning.checkpoints",
        instead("hashlib.sha256(data).hexdigest() != sha256", "False", inside="download"),
        CHECKPOINTS,
    ),
    Mutant(
        "a checkpoint is fetched without a look at its bytes",
        "workers.engines.training.checkpoint_folder",
        instead("actual != file", "False", inside="verify"),
        CHECKPOINTS,
    ),
    Mutant(
        "checkpoints that a row names are removed",
        "workers.finetuning.checkpoints",
        instead("name not in known", "True", inside="remove_partial_uploads"),
        CHECKPOINTS,
    ),
    # the audit chain
    Mutant("an end is not counted", "jobs.ledger.ledger", without("_record_move", "measures.observe_end"), MEASURES),
    Mutant("a chain without links", "jobs.ledger.audit", instead("previous.encode()", "b''", inside="digest"), AUDIT),
    Mutant(
        "a chain without an end",
        "jobs.ledger.audit",
        instead("(head.seal, head.hash) != (walk.seal, walk.hash)", "False", inside="_tail"),
        AUDIT,
    ),
    Mutant(
        "a forged chain is signed",
        "jobs.ledger.audit",
        instead("not has_signature(session, head, key)", "False", inside="extend_signature"),
        AUDIT,
    ),
]


def become(module: ModuleType, change: Change) -> None:
    """Functions are replaced by name; of classes, which others hold by reference, the methods are."""
    before = dict(module.__dict__)
    file = module.__file__ or ""
    exec(compile(change(Path(file).read_text()), file, "exec"), module.__dict__)
    for name, new in list(module.__dict__.items()):
        old = before.get(name)
        if isinstance(old, type) and isinstance(new, type) and old is not new and old.__module__ == module.__name__:
            for attribute, value in vars(new).items():
                if isinstance(value, FunctionType):
                    setattr(old, attribute, value)
            setattr(module, name, old)


@contextlib.contextmanager
def migrating_by(revision: str, change: Change) -> Iterator[None]:
    """Databases are made by the migrations with this one changed."""
    with tempfile.TemporaryDirectory(prefix="nightmill-mutant-") as folder:
        copied = Path(folder) / "migrations"
        shutil.copytree(bootstrap.MIGRATIONS, copied, ignore=shutil.ignore_patterns("__pycache__"))
        script = copied / "versions" / f"{revision}.py"
        script.write_text(change(script.read_text()))
        bootstrap.MIGRATIONS = copied
        bootstrap.migrate(f"sqlite:///{folder}/tried.db")  # tests fail for what is not there, not for a broken revision
        yield


def caught(mutant: Mutant | None) -> bool:
    """In a fork: whether the tests fail with this change. None is the code as it is."""
    with contextlib.ExitStack() as mutated:
        if mutant is not None and mutant.module.startswith(_REVISIONS):
            mutated.enter_context(migrating_by(mutant.module.removeprefix(_REVISIONS), mutant.change))
        elif mutant is not None:
            become(importlib.import_module(mutant.module), mutant.change)
        return _fails(mutant)


def _fails(mutant: Mutant | None) -> bool:
    every = [*LEDGER, *SHARDS, *OUTBOX, *EVENTS, *AUDIT, *KEYS, *MEASURES, *DEPENDENCIES, *TABLES, *WORLD]
    every += [*RECORDER, *CHECKPOINTS]
    tests = mutant.tests if mutant is not None else every
    plugins = [importlib.import_module(name) for name in _PLUGINS]
    options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-k", "not postgres", "-o", "timeout=40"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return pytest.main([*options, *tests], plugins) == pytest.ExitCode.TESTS_FAILED


def forked(mutants: list[Mutant | None]) -> Iterator[tuple[str, str]]:
    """Yield each mutant with its verdict, a few at a time."""
    waiting, running = list(mutants), {}
    while waiting or running:
        while waiting and len(running) < _AT_ONCE:
            mutant = waiting.pop(0)
            child = os.fork()
            if not child:
                _end(mutant)
            running[child] = mutant.name if mutant else "the code as it is"
        child, status = os.wait()
        yield running.pop(child), {0: "lives", 1: "caught"}.get(os.waitstatus_to_exitcode(status), "broken")


def _end(mutant: Mutant | None) -> None:
    verdict = 2
    try:
        verdict = int(caught(mutant))
    except BaseException:  # noqa: BLE001 (nothing of a fork may return into what it was forked from)
        traceback.print_exc()
    os._exit(verdict)


def main() -> None:
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for name in (
        "pytest_timeout",
        "pytest_asyncio.plugin",
        "tests.conftest",
        "tests.simulation.play",
        "tests.simulation.many",
        *{m.module for m in MUTANTS if not m.module.startswith(_REVISIONS)},
    ):
        importlib.import_module(name)
    for name, verdict in forked([None, *MUTANTS]):
        print(json.dumps([name, verdict]), flush=True)


if __name__ == "__main__":
    sys.exit(main())
