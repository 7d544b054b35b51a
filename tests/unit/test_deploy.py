"""deploy/ is what it claims, as far as that shows without a container engine: image, services, environment."""

import errno
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.up.procfile import load
from cli.up.supervisor import stop_seconds
from jobs.settings import Settings
from tests.support.dockerfile import DOCKERFILE, instructions, stages
from tests.support.services import need
from tests.support.system import ROOT
from workers.sandbox import system_calls

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name for name, service in SERVICES.items() if "build" in service}
EXAMPLE = (DEPLOY / ".env.example").read_text()
#: `generate` is the line `gpu` with vLLM on the CPU.
LINES = {"generate": "gpu"}
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|KEY$|AUTH$|_URL$")


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    program = Path(sys.executable).parent / "hadolint"
    if not program.exists():
        need("hadolint", FileNotFoundError(program))
    done = subprocess.run([program, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_each_target_ends_as_a_user_with_a_number_and_has_a_health_check_and_a_command(target: str) -> None:
    stage = stages()[target]
    users = [rest for name, rest in stage if name == "USER"]

    assert users == ["10001:10001"]
    assert not [rest for name, rest in stage[stage.index(("USER", users[0])) :] if name in {"RUN", "COPY"}]
    assert [name for name, _ in stage].count("HEALTHCHECK") == 1
    assert [name for name, _ in stage].count("CMD") == 1
    assert ("FROM", f"runtime AS {target}") in stage
    assert ("STOPSIGNAL", "SIGTERM") in stages()["runtime"]


def test_default_target_is_cpu() -> None:
    assert list(stages())[-1] == "cpu"


def test_every_stage_starts_from_a_pinned_image_or_another_stage() -> None:
    [image] = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    bases = {rest.split()[0] for name, rest in instructions() if name == "FROM"}

    assert pinned(image)
    assert bases - stages().keys() == {"${PYTHON_IMAGE}"}


def test_copied_sources_exist_and_match_dockerignore_exceptions() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for name, rest in instructions()
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }

    assert all((ROOT / source).exists() for source in copied)
    assert copied == let_in


def test_no_value_of_a_build_argument_for_an_index_is_in_the_image() -> None:
    assert re.findall(r"^ARG (?:PIP|UV)_[A-Z_]*(?:INDEX)[A-Z_]*=", DOCKERFILE, re.MULTILINE) == []
    assert not [rest for name, rest in stages()["runtime"] if name == "ARG"]


def test_the_environment_of_the_image_are_settings() -> None:
    named = {name.lower() for name in re.findall(r"NIGHTMILL_([A-Z_]+)=", DOCKERFILE)}

    assert named
    assert named <= Settings.model_fields.keys()


def test_every_line_of_the_procfile_is_a_service_with_its_very_command() -> None:
    lines = {
        line.name: [Path(line.program[0]).name, *line.program[1:]] for line in load(ROOT / "cli" / "up" / "Procfile")
    }
    commands = {name: SERVICES[name]["command"] for name in OURS}

    assert {LINES.get(name, name) for name in OURS} == lines.keys()
    for name, command in commands.items():
        assert ["python", *lines[LINES.get(name, name)][1:]] == command


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_pinned_and_hardened_and_watched(name: str) -> None:
    service = SERVICES[name]

    assert pinned(re.sub(r"\$\{\w+:-(.*)\}", r"\1", service["image"]))
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert service["healthcheck"].get("test") or name == "release"
    assert name == "weaviate" or re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    assert "privileged" not in service
    assert "network_mode" not in service


def pinned(image: str) -> bool:
    """Return whether the tag names a version, or an image that this checkout builds."""
    tag = image.rpartition(":")[2]
    return image.startswith("nightmill:") or bool(re.match(r"\d+\.\d+", tag))


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_stands_in_an_environment(name: str) -> None:
    service = SERVICES[name]
    environment: dict[str, str] = service.get("environment", {})
    files = {value for key, value in environment.items() if key.endswith("_FILE") and value.startswith("/run/secrets/")}

    named = {key for key, value in environment.items() if SECRET.search(key) and "@" not in value}
    in_sight = [key for key in environment if SECRET.search(key) and not key.endswith("_FILE")]
    assert set(in_sight) <= named & {"NIGHTMILL_VECTORS_URL"}  # an address: its key is another setting
    assert files <= {f"/run/secrets/{secret}" for secret in service.get("secrets", [])}
    assert set(service.get("secrets", [])) <= COMPOSE["secrets"].keys()


@pytest.mark.parametrize("name", sorted(OURS))
def test_settings_and_build_targets_of_own_services_exist(name: str) -> None:
    service = SERVICES[name]
    told = {key[len("NIGHTMILL_") :].lower() for key in service["environment"] if key.startswith("NIGHTMILL_")}

    assert {
        key if key in Settings.model_fields else key.removesuffix("_file") for key in told
    } <= Settings.model_fields.keys()
    assert service["build"]["target"] in stages()
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()


def test_dependencies_networks_and_volumes_of_services_are_declared() -> None:
    for name, service in SERVICES.items():
        assert service.get("depends_on", {}).keys() <= SERVICES.keys(), name
        assert set(service["networks"]) <= COMPOSE["networks"].keys(), name
        volumes = {volume.split(":")[0] for volume in service.get("volumes", [])}
        assert volumes <= COMPOSE["volumes"].keys(), name


def test_everything_waits_for_the_release_to_have_ended_well() -> None:
    for name in OURS - {"release"}:
        assert SERVICES[name]["depends_on"]["release"] == {"condition": "service_completed_successfully"}, name


def test_only_the_api_and_flower_can_be_reached_and_only_from_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert published.keys() == {"web", "flower"}
    assert all(re.fullmatch(r"\$\{\w+:-127\.0\.0\.1:\d+\}:\d+", port) for ports in published.values() for port in ports)
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    assert all(SERVICES[name]["networks"] == ["inside"] for name in ("postgres", "valkey", "weaviate"))


def test_valkey_has_a_bound_on_its_memory_and_evicts_nothing() -> None:
    words = SERVICES["valkey"]["command"]
    options = dict(zip(words[2::2], words[3::2], strict=True))

    assert options["--maxmemory"] == "${VALKEY_MEMORY:-512mb}"
    assert options["--maxmemory-policy"] == "noeviction"


def test_profile_for_python_graders_lets_their_sandbox_begin_and_refuses_the_rest_of_the_kernel() -> None:
    graders: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.graders.yaml").read_text())["services"]
    profile = json.loads((DEPLOY / "seccomp-graders.json").read_text())
    [rule] = profile["syscalls"]
    denied = set(rule["names"])

    assert graders.keys() == {"evaluate", "web"}
    for service in graders.values():
        options = dict(re.split("[:=]", option, maxsplit=1) for option in service.pop("security_opt"))
        assert options == {"no-new-privileges": "true", "seccomp": "seccomp-graders.json", "apparmor": "unconfined"}
        assert service == {}
    assert profile["defaultAction"] == "SCMP_ACT_ALLOW"
    assert (rule["action"], rule["errnoRet"]) == ("SCMP_ACT_ERRNO", errno.EPERM)
    assert sorted(denied) == rule["names"], "each once, in order"
    assert not denied & {"unshare", *system_calls.USED}
    assert denied >= {"bpf", "io_uring_setup", "kexec_load", "init_module", "open_by_handle_at", "ptrace", "setns"}


def test_services_with_external_requests_have_outside_network() -> None:
    """Check that services that fetch from elsewhere have a network to the outside.

    Sources are read where a store is planned; engines, models and receivers of webhooks may be elsewhere. So may the
    files, from which the dispatcher removes what is past its retention. The release needs the database alone.
    """
    out = {name for name in OURS if "outside" in SERVICES[name]["networks"]}

    assert out == {"web", "dispatcher", "flower", "cpu", "evaluate", "generate", "gpu", "embed", "finetune", "io"}


def test_the_readme_s_overrides_are_of_services_and_settings_that_exist() -> None:
    overrides = re.findall(r"^```yaml\n(.*?)^```", (DEPLOY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    engine, storage = [yaml.safe_load(override) for override in overrides]

    for override in (engine, storage):
        assert override["services"].keys() <= OURS
        for service in override["services"].values():
            assert set(service["secrets"]) == override["secrets"].keys()
            told = {key[len("NIGHTMILL_") :].removesuffix("_FILE").lower() for key in service.get("environment", {})}
            assert told <= Settings.model_fields.keys()
    assert engine["services"].keys() == {"generate", "gpu"}
    assert storage["services"].keys() == OURS - {"release", "flower"}


def test_both_images_install_parsers_for_every_file_kind() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for target in ("cpu", "gpu"):
        [install] = [rest for name, rest in stages()[f"build-{target}"] if name == "RUN" and "--requirements" in rest]
        given = set(re.findall(r"--extra (\S+)", install))
        assert {"embed", "parse"} < given <= extras
    [packages] = [rest for name, rest in stages()["runtime"] if name == "RUN"]
    assert "tesseract-ocr" in packages.split()


def test_the_example_has_every_variable_of_the_compose_file_with_its_default() -> None:
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", (DEPLOY / "compose.yaml").read_text()))
    example = dict(shlex.split(line)[0].split("=", 1) for line in EXAMPLE.splitlines() if re.match(r"[A-Z]", line))

    assert defaults
    assert {name: example[name] for name in defaults} == defaults


@pytest.mark.parametrize(("name", "more"), [("web", 10), ("generate", 40), ("gpu", 40), ("embed", 40)])
def test_a_service_is_not_killed_before_its_answers_have_had_their_time(name: str, more: int) -> None:
    [grace] = re.findall(r":-(\d+)s}", SERVICES[name]["stop_grace_period"])
    [systemd] = re.findall(r"^TimeoutStopSec=(\d+)$", (ROOT / "docs/operate/deploy.md").read_text(), re.MULTILINE)

    assert int(grace) >= Settings().shutdown_seconds + more
    assert int(systemd) > stop_seconds(Settings().shutdown_seconds)


def test_generated_secrets_are_consistent_private_and_stable(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "make-secrets", tmp_path)
    subprocess.run([tmp_path / "make-secrets"], check=True, capture_output=True)
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    again = subprocess.run([tmp_path / "make-secrets"], check=True, capture_output=True, text=True)

    assert made.keys() == COMPOSE["secrets"].keys()
    assert made["postgres_password"].strip() in made["database_url"]
    assert made["valkey_conf"].split()[1] in made["broker_url"]
    assert re.fullmatch(r"[0-9a-f]{48}\n", made["vectors_api_key"])
    assert len({json.dumps(text) for text in made.values()}) == len(made)
    assert again.stdout == ""
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == made
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o444 for path in (tmp_path / "secrets").iterdir())


def test_weaviate_answers_only_to_the_key_that_our_services_have(tmp_path: Path) -> None:
    weaviate = SERVICES["weaviate"]
    shell, flags, script, *words = [word.replace("$$", "$") for word in (*weaviate["entrypoint"], *weaviate["command"])]
    (tmp_path / "key").write_text("sesame\n")
    (tmp_path / "weaviate").write_text('#!/bin/sh\necho "$AUTHENTICATION_APIKEY_ALLOWED_KEYS" "$@"\n')
    (tmp_path / "weaviate").chmod(0o755)
    script = script.replace("/run/secrets/vectors_api_key", str(tmp_path / "key")).replace(
        "/bin/weaviate", str(tmp_path / "weaviate")
    )
    done = subprocess.run(
        [shell, flags, script, *words], capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}
    )

    assert done.stdout == "sesame --host 0.0.0.0 --port 8080 --scheme http\n"
    assert weaviate["environment"]["AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED"] == "false"
    assert weaviate["environment"]["AUTHENTICATION_APIKEY_ENABLED"] == "true"
    assert weaviate["secrets"] == ["vectors_api_key"]
    assert all("vectors_api_key" in SERVICES[name]["secrets"] for name in OURS)
    assert all("NIGHTMILL_VECTORS_API_KEY_FILE" in SERVICES[name]["environment"] for name in OURS)


def test_git_and_the_build_leave_the_secrets_alone() -> None:
    ignored = subprocess.run(
        ["git", "check-ignore", "deploy/secrets/database_url", "deploy/.env"],
        cwd=ROOT,
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ignored.stdout.split() == ["deploy/secrets/database_url", "deploy/.env"]
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"
