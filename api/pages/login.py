"""The login of people by OpenID Connect: to the identity provider, back with a code, and on to the console.

    GET /login ──▶ provider ──▶ GET /login/callback ──▶ /console/#token=…      the browser sends no fragment to a server
    POST /console/session: the token for keys      POST /logout: the keys are revoked

A cookie holds the secrets of a login that has begun, and then one half of the token; the address holds the other half.
So nobody can end in another browser what began in this one, nor sign another browser in with a link.
"""

from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from sqlalchemy.exc import IntegrityError

from api.deps import Caller, Services, services_of
from api.errors import log_failure, respond
from api.http.bodies import StrictRoute
from api.pages import console_files
from api.shares import run_in_threadpool
from jobs.errors import InvalidRequest, NightmillError, NotFound, PermissionDenied
from jobs.ledger import audit
from jobs.security import accounts, sessions
from jobs.security.accounts import Identity
from jobs.security.oidc import CALLBACK, LoginAttempt, LoginFailed, LoginRefused, Provider

router = APIRouter(include_in_schema=False, route_class=StrictRoute)

#: Served without a key.
PATHS: Final = frozenset({"/login", CALLBACK})
_COOKIE_SECONDS: Final = 600
_HEADERS: Final = {**console_files.HEADERS, "Cache-Control": "no-store"}

Text = Annotated[str, Query(max_length=4096)]


@router.get("/login")
async def begin_login(request: Request) -> Response:
    """Lead a browser to the identity provider."""
    attempt = LoginAttempt.new()
    answer = RedirectResponse(await _provider_of(request).begin(attempt), HTTPStatus.FOUND, headers=_HEADERS)
    _set_cookie(request, answer, str(attempt))
    return answer


@router.get(CALLBACK)
async def finish_login(request: Request, state: Text = "", code: Text = "", error: Text = "") -> Response:
    """Check what the identity provider says, and lead the browser to the console with a token for its keys."""
    services = services_of(request)
    name, is_secure = console_files.login_cookie(services)
    attempt = LoginAttempt.parse(request.cookies.get(name, ""))
    try:
        if attempt is None or error or not code:
            raise LoginFailed("The login was not finished. Try again.")
        identity = await _provider_of(request).finish(attempt, state, code)
        token = await run_in_threadpool(lambda: _log_in(services, identity, request.state.request_id))
    except NightmillError as failure:
        refusal = await _refuse(request, failure)
        refusal.delete_cookie(name, secure=is_secure, httponly=True, samesite="lax")
        return refusal
    half = len(token) // 2
    answer = RedirectResponse(f"{console_files.PATH}#token={token[:half]}", HTTPStatus.SEE_OTHER, headers=_HEADERS)
    _set_cookie(request, answer, token[half:])
    return answer


def _set_cookie(request: Request, answer: Response, value: str) -> None:
    name, is_secure = console_files.login_cookie(services_of(request))
    answer.set_cookie(name, value, _COOKIE_SECONDS, secure=is_secure, httponly=True, samesite="lax")


async def _refuse(request: Request, failure: NightmillError) -> Response:
    """Return the answer to a login that failed. The audit log says why a person of the provider was refused."""
    services = services_of(request)
    if isinstance(failure, LoginRefused | PermissionDenied):
        details: dict[str, str | None] = {"error_code": failure.code, "error_message": failure.message}
        await run_in_threadpool(lambda: _record_failure(services, details, request.state.request_id))
    elif isinstance(failure, LoginFailed):
        services.wrong_keys.count(request.scope)
    log_failure(failure)
    return respond(failure, dict(_HEADERS))


def _record_failure(services: Services, details: dict[str, str | None], request_id: str) -> None:
    with services.db.write() as session:
        audit.record(
            session, actor="login", action="login.fail", target="login", request_id=request_id, details=details
        )


def _log_in(services: Services, identity: Identity, request_id: str) -> str:
    """Return a token for the keys of an identity. Raises: PermissionDenied, for one that is not invited."""
    try:
        with services.db.write() as session:
            account = accounts.log_in(session, identity, request_id)
            return sessions.create_token(session, account.id)
    except IntegrityError as error:  # the same person's first login, twice at once
        raise LoginFailed from error


@router.post("/logout")
def log_out(request: Request) -> Response:
    """Revoke the keys of the session to which the request's key belongs."""
    caller: Caller = request.state.caller
    with services_of(request).db.write() as session:
        if not sessions.close_session(session, caller.key_id, request.state.request_id):
            raise InvalidRequest("This key is of no login. `nightmill keys revoke` revokes it.", code="no_session")
    return JSONResponse({"object": "session.deleted", "deleted": True}, headers=_HEADERS)


def _provider_of(request: Request) -> Provider:
    """Return the identity provider. Raises: NotFound, where none is set."""
    provider = request.app.state.provider
    if provider is None:
        raise NotFound("Nobody can log in here: NIGHTMILL_OIDC_ISSUER is not set.", code="login_not_configured")
    assert isinstance(provider, Provider)
    return provider
