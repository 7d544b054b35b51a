"""The groups of OpenAI's admin API that this deployment has no use for: each of their URLs says so."""

from typing import Final

from api.deps import Admin
from api.http.bodies import resource
from jobs.errors import NotFound

router = resource("Organization", area="management", admin=True)

_CERTIFICATES: Final = "Certificates: mutual TLS ends at the proxy in front of the API"
#: By path: the group, and why it is not served where that is known.
NOT_SERVED: Final = {
    "/organization/certificates": _CERTIFICATES,
    "/organization/projects/{project_id}/certificates": _CERTIFICATES,
    "/organization/external_keys": "External keys",
    "/organization/external_storage": "External storage: files are in the storage of the deployment",
    "/organization/workload_identity_providers": "Workload identity providers",
}


def _refuse(path: str, group: str) -> None:
    def refuse(call: Admin) -> None:  # noqa: ARG001 (the key is checked)
        raise NotFound(f"Nightmill does not serve this group of the admin API. {group}.", code="not_served")

    for suffix in ("", "/{rest:path}"):
        router.add_api_route(path + suffix, refuse, methods=["GET", "POST", "DELETE"], include_in_schema=False)


for _path, _group in NOT_SERVED.items():
    _refuse(_path, _group)
