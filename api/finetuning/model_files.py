"""The files of a project's own tuned models: listed with their hashes, and downloaded."""

from typing import Literal

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel

from api.deps import Call, CallContext
from api.errors import clip
from api.http.bodies import resource
from api.http.download import BYTES_RESPONSES, Download, send_file
from api.shares import run_in_threadpool
from jobs.errors import NotFound
from jobs.registry import models
from jobs.registry.manifests import MANIFEST, decode_manifest

router = resource("Fine-tuning", area="fine_tuning")


class ModelFile(BaseModel):
    """A file of a tuned model."""

    object: Literal["model.file"] = "model.file"
    name: str
    bytes: int
    sha256: str


class ModelFiles(BaseModel):
    """All files of a tuned model: an adapter for the model `base`, or with the method `full` a model of its own."""

    object: Literal["list"] = "list"
    model: str
    base: str
    method: Literal["lora", "qlora", "full"]
    data: list[ModelFile]
    has_more: Literal[False] = False


@router.get("/fine_tuning/models/{fine_tuned_model:path}/files")
def list_model_files(call: Call, fine_tuned_model: str) -> ModelFiles:
    """List the files of a tuned model of this project, or of a checkpoint, with their SHA-256."""
    return _files(call, fine_tuned_model)[1]


@router.get(
    "/fine_tuning/models/{fine_tuned_model:path}/files/{file_name}", response_class=Response, responses=BYTES_RESPONSES
)
async def model_file_content(request: Request, call: Call, fine_tuned_model: str, file_name: str) -> Response:
    """Return the bytes of one file of a tuned model of this project, or one range of them."""

    def look_up() -> Download:
        location, shown = _files(call, fine_tuned_model)
        for file in shown.data:
            if file.name == file_name:
                return Download(f"{location}/{file_name}", file.bytes, file_name)
        message = f"The model '{clip(fine_tuned_model)}' has no file '{clip(file_name)}'."
        raise NotFound(message, param="file_name", code="file_not_found")

    file = await run_in_threadpool(look_up)
    return await send_file(call.storage, file, request.headers.get("range"))


def _files(call: CallContext, name: str) -> tuple[str, ModelFiles]:
    """Return the location of a model of this project in the storage, and its files. Raises NotFound."""
    with call.db.read() as session:
        model = models.find(session, name, call.project_id)
        if model is None or model.project_id != call.project_id:
            raise NotFound(
                f"No tuned model found with the name '{clip(name)}'.", param="fine_tuned_model", code="model_not_found"
            )
        location, sha256, base, method = model.location, model.sha256, model.base, model.method
    path = f"{location}/{MANIFEST}"
    data = call.storage.piece(path, 0, call.storage.size(path))
    stored = decode_manifest(data).model_files
    files = [ModelFile(name=file, bytes=facts.bytes, sha256=facts.sha256) for file, facts in sorted(stored.items())]
    files.append(ModelFile(name=MANIFEST, bytes=len(data), sha256=sha256))
    return location, ModelFiles.model_validate({"model": name, "base": base, "method": method, "data": files})
