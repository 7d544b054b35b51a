"""The login to Flower by OpenID Connect, for people who may see the deployment.

    GET / ──▶ GET /login ──▶ provider ──▶ GET /login with a code ──▶ a signed cookie with the id of the account

Each request asks whether the account has the permission still, so a person who is removed sees nothing from then on. A
cookie lasts as long as a session of the console, and until Flower is restarted. A request with the password needs none.
"""

import asyncio
import logging
from typing import Any, ClassVar, Final

from flower.views import BaseHandler

from jobs.db.engine import Database
from jobs.errors import NightmillError
from jobs.security import accounts, roles
from jobs.security.accounts import Identity
from jobs.security.oidc import LoginAttempt, LoginFailed, Provider
from jobs.security.sessions import SESSION_SECONDS
from jobs.security.tables import NO_PROJECT
from jobs.settings import Settings
from jobs.timings import Timings

log = logging.getLogger(__name__)

PATH: Final = "/login"
#: What a person needs: Flower shows the tasks of all projects.
_PERMISSION: Final = "api.deployment.read"
_USER: Final = "user"
_ATTEMPT: Final = "login"
_COOKIE_DAYS: Final = SESSION_SECONDS / 86_400


def options(config: Settings) -> list[str]:
    """Prepare the login, and return Flower's options for it."""
    PersonLogin.database = Database(config.database)
    PersonLogin.provider = Provider(config, Timings().provider_keys, f"{config.flower_url}{PATH}")
    PersonLogin.is_secure = config.flower_url.startswith("https://")
    password_user = BaseHandler.get_current_user

    def get_current_user(handler: Any) -> str | None:
        if handler.application.options.basic_auth and handler.request.headers.get("Authorization"):
            password_user(handler)  # raises 401
            return "password"
        cookie = handler.get_secure_cookie(_USER, max_age_days=_COOKIE_DAYS)
        return cookie.decode() if cookie and _is_permitted(cookie.decode()) else None

    BaseHandler.get_current_user = get_current_user
    return ["--auth=oidc", f"--auth_provider={__name__}.{PersonLogin.__name__}"]


def _is_permitted(account_id: str) -> bool:
    with PersonLogin.database.read() as session:
        return _PERMISSION in roles.permissions_of(session, account_id, NO_PROJECT)


class PersonLogin(BaseHandler):  # type: ignore[misc]
    """Lead a browser to the identity provider, and take it back."""

    provider: ClassVar[Provider]
    database: ClassVar[Database]
    is_secure: ClassVar[bool]

    async def get(self) -> None:
        """Begin a login; finish one whose answer the browser brings."""
        if not self.get_query_argument("state", ""):
            attempt = LoginAttempt.new()
            self._set_cookie(_ATTEMPT, str(attempt), None)
            self.redirect(await self.provider.begin(attempt))
            return
        try:
            account_id = await self._finish()
        except NightmillError as error:
            log.warning("flower_login_failed", extra={"code": error.code})
            self.set_status(403)
            self.render("404.html", message=error.message)
            return
        self._set_cookie(_USER, account_id, _COOKIE_DAYS)
        self.redirect("/")

    def _set_cookie(self, name: str, value: str, days: float | None) -> None:
        """Set a signed cookie, which no script reads and no form of another site sends."""
        self.set_secure_cookie(name, value, days, secure=self.is_secure, httponly=True, samesite="lax")

    async def _finish(self) -> str:
        """Return the id of the account that has logged in. Raises: NightmillError."""
        attempt = LoginAttempt.parse((self.get_secure_cookie(_ATTEMPT) or b"").decode())
        self.clear_cookie(_ATTEMPT)
        if attempt is None:
            raise LoginFailed
        state, code = self.get_query_argument("state"), self.get_query_argument("code", "")
        identity = await self.provider.finish(attempt, state, code)
        return await asyncio.to_thread(_log_in, identity)


def _log_in(identity: Identity) -> str:
    with PersonLogin.database.write() as session:
        return accounts.log_in(session, identity, None).id
