"""Run `oidc-provider-mock` with the check of PKCE (RFC 7636) that it leaves out, and that authlib has."""

import sys
from typing import Any

from authlib.oauth2.rfc7636 import CodeChallenge
from oidc_provider_mock import _app
from oidc_provider_mock.__main__ import run

#: The challenge and its method, by code.
_challenges: dict[str, tuple[str | None, str | None]] = {}


class _StoredChallenge(CodeChallenge):
    def get_authorization_code_challenge(self, authorization_code: Any) -> str | None:
        return _challenges[authorization_code.code][0]

    def get_authorization_code_challenge_method(self, authorization_code: Any) -> str | None:
        return _challenges[authorization_code.code][1]


class _CheckedGrant(_app.AuthorizationCodeGrant):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        _StoredChallenge()(self)

    def save_authorization_code(self, code: str, request: Any) -> None:
        super().save_authorization_code(code, request)
        data = request.payload.data
        _challenges[code] = data.get("code_challenge"), data.get("code_challenge_method")


if __name__ == "__main__":
    _app.AuthorizationCodeGrant = _CheckedGrant
    sys.exit(run())
