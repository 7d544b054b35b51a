"""Log a person in by OpenID Connect: the code flow with PKCE.

    begin ──▶ the provider's page, with state, nonce and challenge      the browser keeps state, nonce and verifier
    finish ◀── code and state ── the state is the browser's? ── token endpoint: code, verifier ──▶ ID token
    ID token ── a key of the provider, an algorithm of the list, issuer, audience, expiry, nonce ──▶ Identity

The provider's document and keys are cached. A token whose key is unknown has the keys fetched again, at most once in
`keys_seconds`.
"""

import asyncio
import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from joserfc import jwt
from joserfc.errors import ClaimError, JoseError
from joserfc.jwk import Key, KeySet, import_key

from jobs.clock import now
from jobs.errors import InvalidRequest, Unauthenticated, Unavailable
from jobs.platform.url_guard import GuardedResolver, parse
from jobs.security.accounts import Identity
from jobs.settings import Settings

#: Signatures with public keys: a shared secret, or none, signs no login.
ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
CALLBACK: Final = "/login/callback"
_DISCOVERY: Final = "/.well-known/openid-configuration"
_DOCUMENT_SECONDS: Final = 3600.0
_RETRY_SECONDS: Final = 2.0  # between two attempts at a document, so that few requests wait for a silent provider
_ANSWER_SECONDS: Final = 10.0
_MAX_ANSWER: Final = 1 << 20
_MAX_GROUPS: Final = 1000
_LEEWAY: Final = 60  # seconds that the provider's clock may differ


@dataclass(frozen=True, slots=True)
class LoginAttempt:
    """A login that began in a browser, which keeps these secrets until the provider sends it back."""

    state: str
    nonce: str
    verifier: str

    @classmethod
    def new(cls) -> "LoginAttempt":
        """Return the secrets of a new login."""
        return cls(*(secrets.token_urlsafe(32) for _ in range(3)))

    @classmethod
    def parse(cls, text: str) -> "LoginAttempt | None":
        """Return the secrets that `str` has written; None for any other text."""
        parts = text.split(".")
        return cls(*parts) if len(parts) == 3 and all(parts) else None

    def __str__(self) -> str:
        return f"{self.state}.{self.nonce}.{self.verifier}"

    @property
    def challenge(self) -> str:
        """Return the hash of the verifier that the provider compares, without telling the verifier."""
        digest = hashlib.sha256(self.verifier.encode()).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class LoginFailed(Unauthenticated):
    """A login that the provider's answer does not prove."""

    text = "The login failed. Try again."
    code = "login_failed"


class LoginRefused(LoginFailed):
    """A login whose token the provider has signed, and which is refused all the same."""


class Provider:
    """The identity provider of the settings, for one event loop."""

    def __init__(self, config: Settings, keys_seconds: float, callback: str = "") -> None:
        """Log in to the console, or to what has the URL `callback`."""
        self._config = config
        self._keys_seconds = keys_seconds
        self._issuer = config.oidc_issuer
        self._callback = callback or f"{config.url}{CALLBACK}"
        self._lock = asyncio.Lock()
        self._document: dict[str, Any] = {}
        self._document_at = -_DOCUMENT_SECONDS
        self._retry_at = 0.0
        self._keys = KeySet([])
        self._keys_at = -keys_seconds

    async def begin(self, attempt: LoginAttempt) -> str:
        """Return the URL of the provider's page. Raises: Unavailable."""
        document = await self._discover()
        endpoint = document["authorization_endpoint"]
        query = {
            "response_type": "code",
            "client_id": self._config.oidc_client_id,
            "redirect_uri": self._callback,
            "scope": self._config.oidc_scopes,
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": attempt.challenge,
            "code_challenge_method": "S256",
        }
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"

    async def finish(self, attempt: LoginAttempt, state: str, code: str) -> Identity:
        """Return who has logged in.

        Raises: LoginFailed, Unavailable.
        """
        if not hmac.compare_digest(attempt.state.encode(), state.encode()):
            raise LoginFailed("This login began in another browser, or was used before. Try again.")
        document = await self._discover()
        answer = await self._fetch(document["token_endpoint"], self._token_request(document, attempt, code))
        claims = await self._verify(str(answer.get("id_token", "")), document)
        return self._identify(claims, attempt.nonce)

    def _token_request(self, document: Mapping[str, Any], attempt: LoginAttempt, code: str) -> dict[str, Any]:
        """Return what the HTTP client needs to redeem a code."""
        client_id, secret = self._config.oidc_client_id, self._config.oidc_client_secret
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._callback,
            "code_verifier": attempt.verifier,
        }
        methods = document.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        if secret and "client_secret_basic" in methods:
            pair = f"{quote(client_id, safe='')}:{quote(secret, safe='')}"
            return {"data": form, "headers": {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}}
        return {"data": form | {"client_id": client_id} | ({"client_secret": secret} if secret else {})}

    async def _verify(self, token: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the claims of a token that a key of the provider has signed. Raises: LoginFailed."""
        try:
            return jwt.decode(token, self._keys, algorithms=ALGORITHMS).claims
        except (JoseError, ValueError):
            await self._refresh_keys(document["jwks_uri"])
        try:
            return jwt.decode(token, self._keys, algorithms=ALGORITHMS).claims
        except (JoseError, ValueError) as error:
            raise LoginFailed("The provider's ID token is not signed by a key of the provider.") from error

    def _identify(self, claims: Mapping[str, Any], nonce: str) -> Identity:
        """Return the person of claims whose signature is right. Raises: LoginRefused."""
        required = jwt.JWTClaimsRegistry(
            now=lambda: int(now()),
            leeway=_LEEWAY,
            iss={"essential": True, "value": self._issuer},
            aud={"essential": True, "value": self._config.oidc_audience or self._config.oidc_client_id},
            sub={"essential": True},
            exp={"essential": True},
            nonce={"essential": True, "value": nonce},
        )
        try:
            required.validate(dict(claims))
        except ClaimError as error:
            raise LoginRefused(f"The provider's ID token is not valid: its '{error.claim}' is wrong.") from error
        if claims.get("azp", self._config.oidc_client_id) != self._config.oidc_client_id:
            raise LoginRefused("The provider's ID token is for another client.")
        email, verified = claims.get("email"), claims.get("email_verified", self._config.oidc_trust_emails)
        if not isinstance(email, str) or verified is not True:
            raise LoginRefused("The provider's ID token has no verified e-mail address.", code="email_not_verified")
        name, groups = claims.get("name"), claims.get(self._config.oidc_groups_claim)
        return Identity(
            issuer=self._issuer,
            subject=str(claims["sub"])[:255],
            email=email.strip().lower()[:255],
            name=name[:255] if isinstance(name, str) and name else None,
            groups=[group for group in groups if isinstance(group, str)][:_MAX_GROUPS]
            if isinstance(groups, list)
            else [],
        )

    async def _discover(self) -> dict[str, Any]:
        """Return the provider's document. Raises: Unavailable."""
        async with self._lock:
            at = time.monotonic()
            if at - self._document_at >= _DOCUMENT_SECONDS:
                if at < self._retry_at:
                    raise Unavailable("The identity provider did not answer a moment ago.")
                try:
                    self._document, self._document_at = await self._fetch_document(), at
                except Unavailable:
                    self._retry_at = time.monotonic() + _RETRY_SECONDS
                    raise
        return self._document

    async def _fetch_document(self) -> dict[str, Any]:
        document = await self._fetch(self._issuer.rstrip("/") + _DISCOVERY)
        if document.get("issuer") != self._issuer:
            raise Unavailable("The identity provider names another issuer than NIGHTMILL_OIDC_ISSUER.")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            self._check_url(document.get(name))
        return document

    async def _refresh_keys(self, url: str) -> None:
        async with self._lock:
            if time.monotonic() - self._keys_at >= self._keys_seconds:
                fetched = await self._fetch(url)
                self._keys = KeySet(_import_keys(fetched.get("keys")))
                self._keys_at = time.monotonic()

    def _check_url(self, url: Any) -> None:
        try:
            parse(str(url), allow_private=self._config.oidc_allow_private)
        except InvalidRequest as error:
            raise Unavailable(f"The identity provider has a URL that is not allowed: {error.message}") from error

    async def _fetch(self, url: str, request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the JSON object that a URL of the provider answers to a GET, or to the POST of `request`.

        Raises: LoginFailed, where the provider refuses; Unavailable, where it does not answer.
        """
        self._check_url(url)
        target = parse(url, allow_private=self._config.oidc_allow_private).url()
        connector = aiohttp.TCPConnector(
            resolver=GuardedResolver(allow_private=self._config.oidc_allow_private), use_dns_cache=False
        )
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    timeout=aiohttp.ClientTimeout(total=_ANSWER_SECONDS),
                    trust_env=False,
                ) as session,
                session.request(
                    "GET" if request is None else "POST",
                    target,
                    allow_redirects=False,
                    **{"headers": {"Accept": "application/json"}, **(request or {})},
                ) as answer,
            ):
                raw = await _read(answer.content)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unavailable("The identity provider does not answer.") from error
        if request is not None and 400 <= answer.status < 500:
            raise LoginFailed("The identity provider has refused the code. Try again.")
        return _decode(raw, answer.status)


def _import_keys(values: Any) -> list[Key]:
    """Return those keys of a provider that can be read: others may be for other uses."""
    keys: list[Key] = []
    for value in values if isinstance(values, list) else ():
        with suppress(JoseError, TypeError, ValueError):
            keys.append(import_key(value))
    return keys


async def _read(content: aiohttp.StreamReader) -> bytes:
    """Return the bytes of an answer, at most one more than allowed, by which it is no JSON."""
    raw = b""
    while len(raw) <= _MAX_ANSWER and (chunk := await content.read(_MAX_ANSWER + 1 - len(raw))):
        raw += chunk
    return raw


def _decode(raw: bytes, status: int) -> dict[str, Any]:
    try:
        return msgspec.json.decode(raw if status == 200 else b"", type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unavailable(f"The identity provider answers {status}, and no JSON object.") from error
