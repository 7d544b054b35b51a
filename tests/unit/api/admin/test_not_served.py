"""Groups of the admin API that are not served say so, under every URL of theirs."""

from collections.abc import Callable
from typing import Any

import pytest
from openai import NotFoundError
from openai.resources.admin.organization import Organization


@pytest.mark.parametrize(
    ("call", "group"),
    [
        (lambda organization: organization.certificates.list(), "Certificates"),
        (lambda organization: organization.certificates.activate(certificate_ids=["cert_1"]), "Certificates"),
        (lambda organization: organization.certificates.delete("cert_1"), "Certificates"),
        (lambda organization: organization.projects.certificates.list("proj_x"), "Certificates"),
        (lambda organization: organization.external_keys.list(), "External keys"),
        (lambda organization: organization.external_keys.validate("key_1"), "External keys"),
        (lambda organization: organization.external_storage.retrieve("storage_1"), "External storage"),
        (lambda organization: organization.workload_identity_providers.list(), "Workload identity"),
    ],
)
def test_group_that_is_not_served_names_itself(
    organization: Organization, call: Callable[[Organization], Any], group: str
) -> None:
    with pytest.raises(NotFoundError) as refused:
        call(organization)

    assert refused.value.code == "not_served"
    assert group in refused.value.message
