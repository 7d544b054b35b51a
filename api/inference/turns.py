"""Build one turn of a conversation with a model, from a request for a response to its stored result.

the request ──▶ what the model is shown: all earlier turns, and the new input
its answer ──▶ with Nightmill's id ──▶ the response, and the items of its conversation, in one transaction
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from pydantic import BaseModel
from sqlalchemy.orm import Session

from api import shares
from api.deps import CallContext
from api.errors import clip
from api.http.bodies import Body, Many
from api.http.fields import Context, Metadata
from api.http.idempotency import Make
from api.http.space import check_space
from api.inference import stored_answers, stored_conversations
from api.inference.item_references import resolve
from api.inference.prompts import PromptableRequest, UsedPrompt, resolve_prompt
from api.inference.schemas import InputItem, show_item, to_input
from api.inference.stored_answers import AnswerReference, Run
from jobs.errors import InvalidRequest, NightmillError, NotFound, ProjectFull
from jobs.fleet.routing import Route
from jobs.ids import new_id
from jobs.inference import responses
from jobs.inference.complete_answers import new_response
from jobs.inference.context_options import context_options_of
from jobs.inference.stored import StoredAnswer
from jobs.requests import values
from jobs.requests.endpoints import RESPONSES
from jobs.security.project_rules import rules_of

#: Fields that Nightmill handles; engines check the others.
_OWN_FIELDS = frozenset({"background", "conversation", "metadata", "previous_response_id", "store", "stream"})
_SEARCH = "file_search"
_ANSWERED = frozenset({"completed", "incomplete"})


class ConversationReference(Body):
    id: str


Named = str | ConversationReference | None


class CreateResponse(PromptableRequest):
    """The fields that Nightmill reads. With `context` a message may have a `priority`, a number."""

    input: str | Many[InputItem] | None = None
    stream: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    metadata: Metadata | None = None
    background: bool | None = None
    conversation: Named = None
    context: Context = None


@dataclass(slots=True)
class Turn:
    """A response in progress.

    `body` is the request without its prompt, `engine_body` the body that the engine receives, `asked` the input of this
    turn.
    """

    call: CallContext
    body: CreateResponse
    engine_body: dict[str, Any]
    asked: list[dict[str, Any]]  # the input of this turn
    id: str = field(default_factory=lambda: new_id("resp_"))
    prompt: UsedPrompt | None = None

    @property
    def store(self) -> bool:
        return self.body.store is not False

    @property
    def conversation(self) -> str | None:
        return _conversation_id(self.body.conversation)

    @property
    def own_fields(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "conversation": {"id": self.conversation} if self.conversation else None,
            "previous_response_id": self.body.previous_response_id,
            "background": bool(self.body.background),
            "store": self.store,
            "metadata": self.body.metadata or {},
            **({"prompt": self.prompt.public} if self.prompt else {}),
        }

    def to_public(self, answer: Mapping[str, Any], ended: int | None = None) -> dict[str, Any]:
        return responses.to_public(answer, self.own_fields, self.engine_body, ended)

    @property
    def results(self) -> bool:
        """Return whether the client asked for the results of searches."""
        include = self.body.fields().get("include")
        return isinstance(include, list) and responses.RESULTS in include

    def filter_results(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a response, or an event of it, with or without the results of searches."""
        return dict(body) if self.results else responses.drop_results(body)

    def stored_answer(self, response: dict[str, Any]) -> StoredAnswer:
        return StoredAnswer(self.engine_body, response, self.prompt_items)

    @property
    def prompt_items(self) -> int:
        """Return the number of items at the beginning of the engine's input that are messages of the prompt."""
        return self.prompt.messages if self.prompt else 0


def begin(call: CallContext, body: CreateResponse, cached: bytes | None = None) -> Turn:
    """Check a request, and build its turn.

    `cached` are the items up to and with the previous response, as JSON, where its connection has cached them.

    Raises: InvalidRequest, NotFound, StorageFull, and ProjectBusy where the previous response is large.
    """
    body, prompt = resolve_prompt(call, RESPONSES, body)
    with call.db.read() as session:
        if rules_of(session, call.project_id).keeps_nothing:
            body = body.model_copy(update={"store": False})
    if body.conversation and body.background:
        raise _exclusive("background")
    if body.background and body.store is False:
        raise InvalidRequest("In the background a response is kept.", param="store", code="unsupported_value")
    _check_cache(body)
    context_options_of(RESPONSES, body.fields())
    if wrong := values.objection(RESPONSES, body.fields()):
        raise InvalidRequest(wrong.message, param=wrong.param, code=wrong.code)
    if body.store is not False or body.conversation:
        check_space(call, 0)
    given, own = input_items(call, body.input), prompt.messages if prompt else 0
    prompt_items, new_items = given[:own], given[own:]
    engine_body = engine_fields(body.fields()) | {"store": False}  # engines must store nothing
    earlier = earlier_items(call, body.conversation, body.previous_response_id, cached)
    engine_body["input"] = [*prompt_items, *earlier, *new_items]
    if body.input is None and not engine_body["input"]:
        message = "One of 'input', 'previous_response_id' or a 'conversation' that has items must be provided."
        raise InvalidRequest(message, param="input", code="missing_required_parameter")
    _check_calls(engine_body["input"])
    if body.store is not False and _searches(engine_body):  # the stored response has the results
        engine_body["include"] = [*dict.fromkeys([*(engine_body.get("include") or ()), responses.RESULTS])]
    return Turn(call, body, engine_body, new_items, prompt=prompt)


def input_items(call: CallContext, prompt: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Return the items of an input, with those that it refers to. Raises InvalidRequest."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else resolve(call, prompt or [])


def _check_calls(items: Sequence[Mapping[str, Any]]) -> None:
    """Refuse the output of a function that was not called, as OpenAI does."""
    called = set(_call_ids(items, "function_call"))
    for call_id in _call_ids(items, "function_call_output"):
        if call_id not in called:
            message = f"No tool call found for function call output with call_id {clip(call_id)}."
            raise InvalidRequest(message, param="input")


def _call_ids(items: Sequence[Mapping[str, Any]], kind: str) -> Iterator[str]:
    ids = (item.get("call_id") for item in items if item.get("type") == kind)
    return (call_id for call_id in ids if isinstance(call_id, str))


def _searches(engine_body: Mapping[str, Any]) -> bool:
    """Return whether a request searches files and has a valid `include`."""
    tools, include = engine_body.get("tools"), engine_body.get("include")
    known = include is None or (isinstance(include, list) and all(isinstance(name, str) for name in include))
    return (
        known
        and isinstance(tools, list)
        and any(isinstance(tool, dict) and tool.get("type") == _SEARCH for tool in tools)
    )


def engine_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a request that engines are sent."""
    return {name: value for name, value in fields.items() if name not in _OWN_FIELDS}


def earlier_items(
    call: CallContext, conversation: Named, previous: str | None, cached: bytes | None = None
) -> list[Any]:
    """Return the items of a conversation, or of the turns up to a response. Raises InvalidRequest, NotFound."""
    named = _conversation_id(conversation)
    if named and previous:
        raise _exclusive("previous_response_id")
    if named:
        return [to_input(item) for item in stored_conversations.load(call, named)]
    if cached is not None:
        shares.reserve(len(cached))
        return list(msgspec.json.decode(cached))
    return _response_items(call, previous)


def _conversation_id(conversation: Named) -> str | None:
    return conversation.id if isinstance(conversation, ConversationReference) else conversation


def _exclusive(other: str) -> InvalidRequest:
    message = f"'conversation' cannot be given together with '{other}'."
    return InvalidRequest(message, param=other, code="mutually_exclusive_parameters")


def _check_cache(body: CreateResponse) -> None:
    """Refuse `cache` for a request with state. A worker checks the field's value."""
    if body.fields().get("cache") in (None, False):
        return
    given = {
        "store": body.store is not False,
        "background": body.background,
        "conversation": body.conversation,
        "previous_response_id": body.previous_response_id,
        "stream": body.stream,
    }
    for name, wrong in given.items():
        if wrong:
            needs = "it needs 'store' to be false" if name == "store" else f"it cannot be given together with '{name}'"
            raise InvalidRequest(f"Invalid 'cache': {needs}.", param="cache", code="invalid_value")


def _response_items(call: CallContext, previous: str | None) -> list[Any]:
    """Return the items up to and with a response. Raises InvalidRequest."""
    if previous is None:
        return []
    try:
        stored_answer = stored_answers.load_response(call, previous, reserve=True)
    except NotFound as error:
        message = f"Previous response with id '{clip(previous)}' not found."
        raise InvalidRequest(message, param="previous_response_id", code="previous_response_not_found") from error
    status = stored_answer.response.get("status", "completed")
    if status not in _ANSWERED:
        message = f"Previous response '{previous}' is {status}."
        raise InvalidRequest(message, param="previous_response_id", code="invalid_state")
    return [*responses.items(stored_answer), *responses.drop_results(stored_answer.response)["output"]]


def initial_response(turn: Turn, route: Route | None) -> dict[str, Any]:
    """Return a response that no engine has begun. It names the model of the route, as the engine's answer will."""
    model = route.model if route else turn.body.model
    return {**new_response({**turn.engine_body, "model": model}, "queued"), **turn.own_fields}


def keep(turn: Turn, response: dict[str, Any], run: Run) -> None:
    """Store the response and the items of its conversation, in one transaction, which `run` runs."""
    make: Make = (
        stored_answers.STORED_RESPONSES.prepare(turn.call, turn.stored_answer(response))
        if turn.store
        else _make_reference(turn)
    )
    if turn.conversation is None:
        run(make)
        return

    def commit(apply: Callable[[Session], None], new: object) -> None:  # noqa: ARG001
        def apply_and_make(session: Session) -> BaseModel:
            apply(session)
            return make(session)

        run(apply_and_make)

    new_items = [show_item(item) for item in (*turn.asked, *turn.filter_results(response)["output"])]
    try:
        stored_conversations.add(turn.call, turn.conversation, new_items, commit)
    except ProjectFull:
        if turn.store:
            stored_answers.STORED_RESPONSES.remove_orphan(turn.call, turn.id)
        raise


def _make_reference(turn: Turn) -> Make:
    def answer(session: Session) -> BaseModel:
        turn.call.record(session, "conversation.items.create", str(turn.conversation))
        return AnswerReference(id=turn.id)

    return answer


def decode_answer(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.MsgspecError as error:
        raise invalid_answer() from error


def invalid_answer() -> NightmillError:
    return NightmillError("The engine's answer is not a response.", code="engine_error")
