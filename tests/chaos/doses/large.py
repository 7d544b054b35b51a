"""F2: one batch of a million lines, whose worker is killed again and again, in shards of 32 lines."""

import threading
from statistics import median

from bench.deployment import MB, chats
from bench.killed import Killer, PromptLog, moments
from bench.pipeline import MODEL, PROMPTS, check, deployment
from jobs.ledger.slot_weights import SLOTS
from tests.chaos.doses.dose import Given, Outcome

_KILLS = 10
_SHARD_LINES = 32
_RESUME_SECONDS = 5.0
_MOST = {"gpu": 600, "web": 300}  # MB


def one_batch(given: Given) -> Outcome:
    lines = given.part(1_000_000)
    outcome = Outcome(f"{lines:,} lines in shards of {_SHARD_LINES}, kill -9 of the worker, {_KILLS} times")
    path = given.folder / "input.jsonl"
    with deployment(given.folder, "stub", NIGHTMILL_SHARD_LINES=str(_SHARD_LINES)) as inline:
        inline.wait_for("cpu.plan")
        inline.wait_for("gpu.generate")
        chats(path, lines, MODEL)
        file_id = inline.upload(path)
        inline.forget_peaks()
        asked = PromptLog(given.folder / PROMPTS)
        killer = Killer(inline, asked, moments(lines, _KILLS, given.rng))
        thread = threading.Thread(target=killer.run, name="killer", daemon=True)
        thread.start()
        done = inline.run(file_id, killing=True)
        thread.join()
        killer.weigh()
        check(inline, done, lines)
    outcome.judge(f"each custom_id once, {lines / done.seconds:,.0f} lines/s")
    outcome.at_most("asked twice", asked.count() - lines, _KILLS * SLOTS * _SHARD_LINES)
    outcome.judge(f"asks again {median(killer.resumed):.1f} s after a kill (median)")
    outcome.at_most("worst, with the worker's start", max(killer.resumed), _RESUME_SECONDS, " s")
    for name, most in _MOST.items():
        outcome.at_most(f"{name} held", killer.peaks[name] / MB, most, " MB")
    return outcome
