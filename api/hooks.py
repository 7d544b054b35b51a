"""The one-off webhook of a job, given when it is created."""

from pydantic import Field

from api.bodies import Body
from jobs.errors import InvalidRequest
from jobs.guard import check_url
from jobs.settings import Settings
from jobs.webhook import check_secret


class JobWebhook(Body):
    """Where this job's end is told, besides the project's endpoints."""

    url: str = Field(min_length=1, max_length=2048)
    secret: str | None = Field(default=None, max_length=128, description="`whsec_…`; without one it is not signed.")


def check_webhook(config: Settings, webhook: JobWebhook | None) -> str | None:
    """The secret of a webhook whose URL may be called. Raises InvalidRequest. Asks the name server: no transaction."""
    if webhook is None:
        return None
    try:
        check_url(webhook.url, allow_private=config.webhook_allow_private)
    except InvalidRequest as error:
        raise InvalidRequest(error.message, param="webhook.url", code=error.code) from error
    return check_secret(webhook.secret, param="webhook.secret") if webhook.secret is not None else None
