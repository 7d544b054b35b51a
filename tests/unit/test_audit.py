"""`make check` looks for known vulnerabilities: one fails it, unless it is ignored or nobody can be asked."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAULT = {"id": "PYSEC-1", "aliases": ["CVE-1", "GHSA-1"], "fix_versions": ["2.0"], "description": "bad"}
SOUND = {"name": "sound", "version": "1.0", "vulns": []}
UNKNOWN = {"name": "own", "skip_reason": "Dependency not found on PyPI"}


def audit(folder: Path, answer: str, complaint: str = "", ignore: str = "") -> tuple[int, str]:
    """Run .ci/audit with a pip-audit that says `answer` and `complaint`; return its exit code and what it printed."""
    shutil.copy(ROOT / ".ci/audit", folder)
    (folder / "audit-ignore").write_text(ignore)
    (folder / "answer").write_text(answer)
    (folder / "complaint").write_text(complaint)
    program = folder / "pip-audit"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {folder}/words; cat {folder}/answer; cat {folder}/complaint >&2; exit 1\n'
    )
    program.chmod(0o755)
    command = [sys.executable, folder / "audit", program, "a.txt", "b.txt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


def report(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


def test_a_known_vulnerability_fails_the_check_and_is_named(tmp_path: Path) -> None:
    code, told = audit(tmp_path, report(SOUND, {"name": "bad", "version": "1.9", "vulns": [FAULT]}, UNKNOWN))

    assert code == 1
    assert "bad 1.9: PYSEC-1, CVE-1, GHSA-1; fixed in 2.0\n" in told
    assert "2 packages looked up, 1 not on PyPI; 1 vulnerabilities, 0 more ignored" in told
    words = (tmp_path / "words").read_text().split()
    assert {"--no-deps", "--requirement=a.txt", "--requirement=b.txt"} <= set(words)


@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-1"])
def test_vulnerability_is_ignored_only_with_reason(tmp_path: Path, name: str) -> None:
    answer = report({"name": "bad", "version": "1.9", "vulns": [FAULT]})

    assert audit(tmp_path, answer, ignore=f"# why\n{name} it is not called\n")[0] == 0
    assert audit(tmp_path, answer, ignore="CVE-2 another\n")[0] == 1
    code, told = audit(tmp_path, answer, ignore=f"{name}\n")
    assert (code, f"{name} has no reason" in told) == (1, True)


@pytest.mark.parametrize(
    ("answer", "complaint", "why"),
    [
        ("", "Traceback\nConnectionError: no route to host\n", "ConnectionError: no route to host"),
        (
            "",
            "ERROR: x\nTip: your network may be blocking this service",
            "Tip: your network may be blocking this service",
        ),
        (report(UNKNOWN, UNKNOWN), "", "Dependency not found on PyPI"),
    ],
)
def test_check_passes_with_message_if_audit_is_unavailable(
    tmp_path: Path, answer: str, complaint: str, why: str
) -> None:
    assert audit(tmp_path, answer, complaint) == (0, f"pip-audit did not run: {why}\n")


def test_another_failure_of_pip_audit_fails_the_check(tmp_path: Path) -> None:
    code, told = audit(tmp_path, "", "ERROR: bad.txt has duplicate requirements\n")

    assert (code, "duplicate requirements" in told) == (1, True)


def test_ignored_vulnerabilities_of_repository_have_reasons(tmp_path: Path) -> None:
    ignored = (ROOT / ".ci/audit-ignore").read_text()

    assert audit(tmp_path, report(SOUND), ignore=ignored)[0] == 0
