"""The console's sources are what the product promises, as far as that shows without Node."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from api import openapi

ROOT = Path(__file__).resolve().parents[2]
CONSOLE = ROOT / "console"
PACKAGE = json.loads((CONSOLE / "package.json").read_text())
#: What a page may not have under the content security policy, and what an answer of a model could bring in.
FORBIDDEN = re.compile(
    r"dangerouslySetInnerHTML=|\.(?:inner|outer)HTML\s*=|insertAdjacentHTML|\beval\("
    r"|https?://(?!127\.0\.0\.1|example\.com/|\")"  # what a form shows as an example is not fetched
)


def sources() -> list[Path]:
    files = sorted((CONSOLE / "src").rglob("*.ts*"))
    return [file for file in files if file.name != "schema.d.ts"]


def test_the_lock_file_names_no_registry_and_checks_every_package() -> None:
    packages = json.loads((CONSOLE / "package-lock.json").read_text())["packages"]
    fetched = {name: package for name, package in packages.items() if name}

    assert len(fetched) > 100
    assert not [name for name, package in fetched.items() if "resolved" in package]
    assert not [name for name, package in fetched.items() if not package["integrity"].startswith("sha512-")]


def test_versions_are_exact_and_npmrc_names_no_registry() -> None:
    versions = {**PACKAGE["dependencies"], **PACKAGE["devDependencies"]}
    settings = (CONSOLE / ".npmrc").read_text()

    assert not [name for name, version in versions.items() if not re.fullmatch(r"\d+\.\d+\.\d+", version)]
    assert "omit-lockfile-registry-resolved=true" in settings.splitlines()
    assert not re.search("registry=|https?:|_auth", settings)


def test_the_page_has_no_inline_script_and_no_inline_style() -> None:
    pages = [CONSOLE / "index.html", ROOT / "api" / "pages" / "console" / "index.html"]
    for page in filter(Path.exists, pages):
        text = page.read_text()
        assert re.findall(r"<script(?![^>]*\bsrc=)[^>]*>", text) == [], page
        assert re.findall(r"<style|\sstyle=|\son\w+=", text) == [], page


@pytest.mark.parametrize("file", sources(), ids=lambda file: file.relative_to(CONSOLE).as_posix())
def test_sources_contain_no_raw_html_and_no_external_url(file: Path) -> None:
    assert FORBIDDEN.findall(file.read_text()) == []


def test_the_document_that_types_are_made_from_is_the_api_s() -> None:
    paths = openapi.document()["paths"]

    assert {"/v1/jobs", "/v1/throughput", "/v1/events"} <= set(paths)


def test_without_node_the_build_says_so_in_a_line_and_succeeds(tmp_path: Path) -> None:
    for folder in (".ci", "console", "api"):
        (tmp_path / folder).mkdir()
    script = tmp_path / ".ci" / "console"
    script.write_bytes((ROOT / ".ci" / "console").read_bytes())
    script.chmod(0o755)
    (tmp_path / "api" / "app.py").touch()
    shutil.copy(ROOT / ".ci" / "steps", script.parent)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "basename", "find", "sed", "env", "sh"):
        (programs / name).symlink_to(
            next(path for path in (Path("/usr/bin") / name, Path("/bin") / name) if path.exists())
        )

    for task, words in (("build", "not built"), ("check", "not checked")):
        done = subprocess.run(
            [script, python, task],
            env={**os.environ, "PATH": str(programs)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"the console is {words}: it needs Node 24 or newer")
        assert done.stdout.count("\n") == 1
