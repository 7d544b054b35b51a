"""Refuse images, sounds, videos and files whose bytes are not in the request itself.

An engine would fetch or open any other URL from its own machine. `workers.middleware.media_urls` has put bytes in the
place of the URLs that a project may have fetched. Servers name media in many ways of their own, so this module lists
what is accepted, and refuses the rest:

content parts    of the types in `_PARTS`, with the keys listed there
media keys       those in `_FETCHED`, with `data:` URLs or base64; any other key or type that names media is refused
inputs           of an embedding or a re-ranking: texts, or objects that have a text
tensors          none: reading a tensor has run code of the caller's
text             may name images too: `find_images` finds them, for servers that fetch these (text-generation-inference)
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from jobs.requests import fields
from jobs.requests.endpoints import EMBEDDINGS, RERANK
from workers.engines.documented import STEERING
from workers.engines.port import Answer, refusal

_NESTED: Final = (dict, list)
_URLS: Final = frozenset({"image_url", "video_url", "audio_url", "file_url"})
_BYTES: Final = frozenset({"input_audio", "file_data"})  # base64, or a URL
_FETCHED: Final = _URLS | _BYTES
_TENSORS: Final = frozenset({"prompt_embeds", "image_embeds", "audio_embeds", "video_embeds", "input_embeds"})
_TEXT: Final = frozenset({"text"})

Fault = tuple[str, str | None]  # a message, and OpenAI's code for it

#: The keys of OpenAI's content parts, and of vLLM's of the same kind, by type, besides those in `_ANY_PART`.
_PARTS: Final[Mapping[str, frozenset[str]]] = {
    **dict.fromkeys(("text", "input_text", "summary_text", "reasoning_text"), _TEXT),
    "output_text": _TEXT | {"annotations", "logprobs"},
    "refusal": frozenset({"refusal"}),
    "thinking": frozenset({"thinking", "closed"}),
    "image_url": frozenset({"image_url"}),
    "input_image": frozenset({"image_url", "detail"}),
    "video_url": frozenset({"video_url"}),
    "audio_url": frozenset({"audio_url"}),
    "input_audio": frozenset({"input_audio"}),
    "file": frozenset({"file"}),
    "input_file": frozenset({"file_data", "file_url", "filename", "detail"}),
}
_ANY_PART: Final = frozenset({"type", "prompt_cache_breakpoint"})
#: The keys of the objects in these parts.
_INNER: Final[Mapping[str, frozenset[str]]] = {
    "image_url": frozenset({"url", "detail"}),
    "video_url": frozenset({"url"}),
    "audio_url": frozenset({"url"}),
    "input_audio": frozenset({"data", "format"}),
    "file": frozenset({"file_data", "filename"}),
}
#: Types of items whose `output` is a list of content parts.
_HAVE_PARTS: Final = ("function_call_output", "custom_tool_call_output")
_HARMLESS: Final = frozenset({"image_generation_call"})  # types that name media and hold their bytes
_SCHEMAS: Final = frozenset({"parameters", "input_schema"})  # keys of tools
_PLAIN: Final = frozenset({"role", "text"})  # keys of nearly every object
_ELSEWHERE: Final = "media_url_not_allowed"
_NOT_FETCHED: Final = (
    "Pictures and files are fetched from https URLs only for projects that the operator allows it (--allow-media-urls)."
)
_NAMES_MEDIA: Final = re.compile(r"image|img|video|audio|pixel|multi_?modal|(?:^|_)media|^mm(?:_|$)", re.IGNORECASE)
_DOCUMENTED: Final = frozenset[str]().union(*fields.OPENAI.values())
#: Fields of a body that are not checked: OpenAI's without media, and those that steer a server, which no engine gets.
_SILENT: Final = STEERING | {name for name in _DOCUMENTED if not _NAMES_MEDIA.search(name)}
_AUDIO: Final = frozenset({"id", "voice", "format", "data", "transcript", "expires_at"})  # of `audio`, as OpenAI has it
#: A URL, or a path that leads out of the working folder; URLs are read without control characters.
_URL: Final = re.compile(r"[\0- ]*(?:/|~|\.[\0-\x1f]*[./]|[a-z][a-z0-9+.\0-\x1f-]*:[\0-\x1f]*[^\0- ])", re.IGNORECASE)
# Both patterns take time linear in the text.
#: A character of ASCII in JSON that stands in a text, as the arguments of calls do.
_ESCAPED: Final = re.compile(rb"(?<!\\)\\+u00([2-7][0-9a-f])", re.IGNORECASE)
_IN_TEXT: Final = re.compile(rb"!\[[^\[\]]*\]\(\s*(?:<\s*)?https?:", re.IGNORECASE)


def objection(url: str, body: Mapping[str, Any], schemas: frozenset[str]) -> Answer | None:
    """Return the refusal of this request; None if it may go on.

    Properties in the fields `schemas` may have any name, and so may those in `metadata`, in the schemas of tools
    anywhere, and the variables of a prompt.
    """
    for name, value in body.items():
        if isinstance(value, _NESTED) and (name == "metadata" or name in schemas):
            continue
        if fault := _fault(name, value) or _find_textless(url, name, value):
            message, code = fault
            return refusal(400, message, param=name, code=code)
    return None


def _fault(name: str, value: Any) -> Fault | None:
    if name not in _SILENT and (fault := _entry(name, value) or _parts(name, value)):
        return fault
    if isinstance(value, _NESTED):
        for member in _objects(name, value):
            for key, inner in member.items():
                if key in _PLAIN or (key == "content" and isinstance(inner, str)):
                    continue
                if name == "documents" and _is_description(key, inner):
                    continue
                if fault := _entry(key, inner) or _parts(key, inner, member.get("type")):
                    return fault
    return None


def _objects(name: str, value: Any) -> Iterator[dict[str, Any]]:
    """Walk through the objects in the field `name`, however deep, whose keys mean something to a server."""
    variables = value.get("variables") if name == "prompt" and isinstance(value, dict) else None
    left = [(name, value)]
    while left:
        key, node = left.pop()
        if isinstance(node, list):
            left += [(key, inner) for inner in node if isinstance(inner, _NESTED)]
            continue
        if key == "tools":
            node = {field: inner for field, inner in node.items() if field not in _SCHEMAS}
        if node is not variables:  # whose keys the caller chooses
            yield node
        left += [(key, inner) for key, inner in node.items() if isinstance(inner, _NESTED)]


def _entry(key: str, value: Any) -> Fault | None:
    """Find what is wrong with one entry of an object."""
    named = value if key == "type" else key
    if value is None or not isinstance(named, str):
        return None
    if named in _TENSORS:
        return "Tensors are not taken.", None
    if key in _FETCHED:
        message = f"{key}: only data: URLs are taken. {_NOT_FETCHED}"
        return (message, _ELSEWHERE) if _is_elsewhere(key, value) else None
    if _is_unknown(key, value):
        return f"{_short(named)} is not among the media that are taken.", "unsupported_value"
    return None


def _parts(key: str, value: Any, kind: Any = None) -> Fault | None:
    """Find what is wrong with the content parts that stand under the key in an object of the type `kind`."""
    if key != "content" and not (key == "output" and kind in _HAVE_PARTS):
        return None
    parts = value if isinstance(value, list) else [value]
    return next(filter(None, (_part(part) for part in parts if isinstance(part, dict))), None)


def _is_description(key: str, value: Any) -> bool:
    """Return whether a document's field is a plain text, which no server fetches or opens, whatever its name."""
    means_media = key == "type" or key in _FETCHED or key in _TENSORS
    return isinstance(value, str) and not means_media and not _URL.match(value)


def _is_unknown(key: str, value: Any) -> bool:
    """Return whether a key, or a type, names media in a way that is not listed."""
    if key == "type":
        return value not in _PARTS and value not in _HARMLESS and bool(_NAMES_MEDIA.search(value))
    if key == "audio" and isinstance(value, dict):
        return not value.keys() <= _AUDIO
    return isinstance(value, (*_NESTED, str)) and bool(_NAMES_MEDIA.search(key))


def _part(part: dict[str, Any]) -> Fault | None:
    kind = part.get("type")
    keys = _PARTS.get(kind) if isinstance(kind, str) else None
    if keys is None:
        message = f"A content part must have one of these types: {', '.join(_PARTS)}; it has {_short(kind)}."
        return message, "invalid_value"
    if fault := _find_stray_key(part, keys, f"a content part of the type {kind}"):
        return fault
    inner = ((name, part[name]) for name in keys if name in _INNER and isinstance(part.get(name), dict))
    return next(filter(None, (_find_stray_key(part, _INNER[name], name) for name, part in inner)), None)


def _find_stray_key(part: dict[str, Any], keys: frozenset[str], where: str) -> Fault | None:
    for key, value in part.items():
        if key not in keys and key not in _ANY_PART and value is not None:
            return f"{_short(key)} is not a key of {where}.", "unknown_parameter"
    return None


def _short(value: Any) -> str:
    return repr(value)[:64]


def _is_elsewhere(kind: str, location: Any) -> bool:
    if isinstance(location, dict):
        location = location.get("data" if kind in _BYTES else "url")
    if isinstance(location, str):
        plain = kind in _BYTES and ":" not in location
        return not plain and not location[:64].lstrip().lower().startswith("data:")
    return isinstance(location, _NESTED)  # in no API; a server that reads it would read the media in it


def _find_textless(url: str, name: str, value: Any) -> Fault | None:
    """Find inputs of an embedding or a re-ranking that are objects without a text, which a server may fetch."""
    if url in (EMBEDDINGS, RERANK) and name in ("input", "documents", "query"):
        for document in value if isinstance(value, list) else [value]:
            if isinstance(document, dict) and not document.keys() & {"text", "content"}:
                return f"{name} must be texts, or objects with a text.", "invalid_value"
    return None


def find_images(body: Mapping[str, Any]) -> Answer | None:
    """Return the refusal of a request whose text names an image by URL as Markdown does; None if it may go on."""
    for name, value in body.items():
        if isinstance(value, (*_NESTED, str)) and name != "metadata":
            joined = "".join(_texts(value)).encode(errors="replace")  # a server joins the parts of a message
            whole = _ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), msgspec.json.encode(value))
            if _IN_TEXT.search(whole) or _IN_TEXT.search(joined):
                message = "The text names an image by its URL, which the servers of this deployment must not fetch."
                return refusal(400, message, param=name, code=_ELSEWHERE)
    return None


def _texts(value: Any) -> Iterator[str]:
    """Walk through the texts of content parts, in their order."""
    left = [value]
    while left:
        node = left.pop()
        if isinstance(node, list):
            left += reversed(node)
        elif isinstance(node, dict):
            if isinstance(text := node.get("text"), str):
                yield text
            left.append(node.get("content"))
