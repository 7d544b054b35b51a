"""Promptfoo's assertions as graders: a rule for each type that means the same here, a reason for each that does not.

    assertion ── rule ──▶ Term: graders, the formula of the score, the score it passes from
    test with a threshold, assert-set with one ── weighted mean of terms ──▶ Term

A literal value becomes a field of the item, so that tests that differ in their values alone are items of one eval.
"""

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cli.migrate.promptfoo.files import ConfigFolder, NoCounterpart, Object, file_name, load_yaml
from cli.migrate.promptfoo.templates import PathTemplate, item_path, parse

OUTPUT: Final = "{{ sample.output_text }}"
#: The name of the judge where a config names none: `--map` says which model it is.
DEFAULT_JUDGE: Final = "promptfoo-judge"
_MAX_FORMULA: Final = 1000
#: The smallest score above 0.
_ABOVE_ZERO: Final = 5e-324
_DRAFT: Final = "http://json-schema.org/draft-07/schema#"

Remark = Callable[[str, str, bool], None]


@dataclass(frozen=True, slots=True)
class Term:
    """The graders of an assertion, and the formula of its score, which has `{0}` for the first grader.

    It passes from `threshold` on; None stands for scores of 0 and 1.
    """

    graders: tuple[Object, ...]
    formula: str = "{0}"
    threshold: float | None = None


@dataclass(slots=True)
class Fields:
    """The fields of an item that hold the literal values of its test. `forced` are those that code reads."""

    taken: set[str]
    values: dict[str, Any] = field(default_factory=dict)
    forced: set[str] = field(default_factory=set)

    def add(self, value: Any, *, is_forced: bool = False) -> str:
        """Add a value, and return the name of its field."""
        number = len(self.values) + 1
        name = "expected" if number == 1 else f"expected_{number}"
        while name in self.taken or name in self.values:
            name += "_"
        self.values[name] = value
        if is_forced:
            self.forced.add(name)
        return name


@dataclass(frozen=True, slots=True)
class Assertion:
    """An assertion of a test: what its rule reads. `question` is the prompt as a template, where there is one alone."""

    definition: Object
    kind: str
    variables: Mapping[str, Any]
    options: Object
    question: str
    fields: Fields
    folder: ConfigFolder
    remark: Remark
    is_summed: bool

    @property
    def value(self) -> Any:
        """Return the value: what its file holds, where it names one. Raises: NoCounterpart."""
        value = self.definition.get("value")
        return value if (name := file_name(value)) is None else self.folder.value(name)

    @property
    def threshold(self) -> float | None:
        threshold = self.definition.get("threshold")
        return threshold if isinstance(threshold, int | float) and not isinstance(threshold, bool) else None

    def text(self, value: Any) -> str:
        """Return the template of a value: a path into the item, or the field of a literal. Raises: NoCounterpart."""
        template = _template_of(value)
        return template.to_item() if template.names else item_path([self.fields.add(template.render({}))])

    def texts(self) -> list[str]:
        """Return the templates of a list of values, or of a text with commas. Raises: NoCounterpart."""
        value = self.value
        values = _split(value) if isinstance(value, str) else value
        if not isinstance(values, list) or not values:
            raise NoCounterpart("it has no list of values")
        templates = [_template_of(entry) for entry in values]
        if any(template.names for template in templates):
            return [self.text(entry) for entry in values]
        name = self.fields.add([template.render({}) for template in templates])
        return [item_path([name, number]) for number in range(len(values))]

    def python_check(self, expression: str, value: Any) -> Term:
        """Return the term of Python code that compares the `output` with what is `expected`."""
        source = _CHECK.format(field=self.fields.add(value, is_forced=True), expression=expression)
        return Term(({"type": "python", "source": source},))

    def judge(self, purpose: str) -> Object:
        """Return the model of a judge. The remark says what is not Promptfoo's. Raises: NoCounterpart."""
        provider = self.definition.get("provider") or self.options.get("provider")
        if isinstance(provider, dict) and "id" not in provider:
            provider = provider.get("text")
        self.remark(self.kind, f"the judge is asked by Nightmill's own {purpose}: its verdicts may differ", False)
        if provider is None:
            self.remark(self.kind, f"no judge is named: name one with --map {DEFAULT_JUDGE}=MODEL", False)
            return {"model": DEFAULT_JUDGE}
        return {"model": model_of(provider)}

    def messages(self, text: str, names: Mapping[str, str]) -> list[Object]:
        """Return the message to a judge. Raises: NoCounterpart, where the config has another one."""
        if self.definition.get("rubricPrompt") or self.options.get("rubricPrompt"):
            raise NoCounterpart("its rubricPrompt says how the judge answers: write a label_model or a score_model")
        return [{"role": "user", "content": parse(text).to_item(names)}]


def _template_of(value: Any) -> PathTemplate:
    if isinstance(value, dict | list) or value is None:
        raise NoCounterpart("its value is not a text")
    if file_name(value) is not None:
        raise NoCounterpart("its values name files")
    return parse(value if isinstance(value, str) else json.dumps(value))


def _split(text: str) -> list[str]:
    """Return the parts of a text between commas; one in quotes may have commas."""
    parts = re.findall(r'\s*(?:"((?:[^"\\]|\\.|"")*)"|([^,]+))\s*(?:,|$)', text)
    return [
        re.sub(r'\\(["\\])|""', lambda match: match[1] or '"', quoted) if quoted else plain.strip()
        for quoted, plain in parts
        if quoted or plain.strip()
    ]


def model_of(provider: Any) -> str:
    """Return the model of a provider, without its endpoint. Raises: NoCounterpart."""
    name = provider.get("id") if isinstance(provider, dict) else provider
    scheme, _, rest = name.partition(":") if isinstance(name, str) else ("", "", "")
    first, _, last = rest.partition(":")
    if _OTHER_ENDPOINTS.fullmatch(first):
        raise NoCounterpart(f"the provider '{scheme}:{first}' is not a model that is asked for a text")
    model = last if _ENDPOINTS.fullmatch(first) else rest
    if not model or _NO_MODELS.fullmatch(scheme) or "{{" in model or "://" in str(name):
        raise NoCounterpart("its provider is a program, or names no model")
    return model[:255]


_ENDPOINTS: Final = re.compile("chat|completion|responses|messages|text-generation|generate|converse")
_OTHER_ENDPOINTS: Final = re.compile(
    "assistant|realtime|image|moderation|embeddings?|transcription|agents|video|speech|claude-agent-sdk"
)
_NO_MODELS: Final = re.compile(
    "python|javascript|exec|file|https?|wss?|webhook|package|golang|ruby|echo|mcp|browser|promptfoo|sequence"
)


def combine(terms: Sequence[Term]) -> tuple[list[str], tuple[Object, ...]]:
    """Return the formulas of terms over the graders of all of them, and these graders."""
    graders: tuple[Object, ...] = ()
    formulas = []
    for term in terms:
        shown = [f"{{{number + len(graders)}}}" for number in range(len(term.graders))]
        formulas.append(term.formula.format(*shown))
        graders += term.graders
    return formulas, graders


# ── comparisons ──


def _equals(assertion: Assertion) -> Term:
    value = assertion.value
    if isinstance(value, dict | list):
        _check_literal(value)
        return Term(({"type": "json_schema", "input": OUTPUT, "schema": {"enum": [value]}},))
    if assertion.definition.get("normalizeUnicode"):
        raise NoCounterpart("no grader normalizes Unicode")
    return _comparison(assertion, "eq")


def _comparison(assertion: Assertion, operation: str) -> Term:
    if assertion.value == "" and operation != "eq":
        raise NoCounterpart("it has no value")
    grader = {"type": "string_check", "input": OUTPUT, "operation": operation}
    return Term((grader | {"reference": assertion.text(assertion.value)},))


def _comparisons(assertion: Assertion, operation: str, function: str) -> Term:
    references = assertion.texts()
    grader = {"type": "string_check", "input": OUTPUT, "operation": operation}
    return Term(tuple(grader | {"reference": text} for text in references), _function_of(function, len(references)))


def _function_of(function: str, count: int) -> str:
    return f"{function}({', '.join(f'{{{number}}}' for number in range(count))})" if count > 1 else "{0}"


def _starts_with(assertion: Assertion) -> Term:
    expected = _template_of(assertion.value).render(assertion.variables)
    if not expected:
        raise NoCounterpart("it has no value")
    return assertion.python_check("output.startswith(expected)", expected)


def _finish_reason(assertion: Assertion) -> Term:
    grader = {"type": "exact_match", "input": "{{ sample.choices[0].finish_reason }}", "ignore_case": True}
    return Term((grader | {"reference": assertion.text(assertion.value)},))


def _similar(assertion: Assertion) -> Term:
    value = assertion.value
    references = assertion.texts() if isinstance(value, list) else [assertion.text(value)]
    grader = {"type": "text_similarity", "input": OUTPUT, "evaluation_metric": "cosine"}
    assertion.remark(assertion.kind, "the vectors are those of this deployment's embedding model: scores differ", False)
    threshold = 0.75 if assertion.threshold is None else assertion.threshold
    return Term(
        tuple(grader | {"reference": text} for text in references), _function_of("max", len(references)), threshold
    )


def _is_json(assertion: Assertion) -> Term:
    value = assertion.value
    schema = load_yaml(value) if isinstance(value, str) and value else value
    if schema is None or schema == "":
        schema = {}
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    if not isinstance(schema, dict):
        raise NoCounterpart("its schema is not an object")
    _check_literal(schema)
    if _has_key(schema, "format"):
        assertion.remark(assertion.kind, "the 'format' of a schema is not checked here", False)
    schema = {"$schema": _DRAFT} | schema if schema else {}
    return Term(({"type": "json_schema", "input": OUTPUT, "schema": schema},))


def _check_literal(value: Any) -> None:
    if "{{" in json.dumps(value):
        raise NoCounterpart("its value has a template inside of an object")


def _has_key(value: Any, name: str) -> bool:
    if isinstance(value, dict):
        return isinstance(value.get(name), str) or any(_has_key(entry, name) for entry in value.values())
    return isinstance(value, list) and any(_has_key(entry, name) for entry in value)


# ── JavaScript ──

_JS_SPACE: Final = r"[\t-\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff]"
_JS_TOKEN: Final = re.compile(
    r"""
      (?P<class>   \[\^?(?:\\.|[^\]\\])*\] )
    | (?P<group>   \((?:\?(?:[:=!]|<[=!]|<[A-Za-z_]\w*>))?(?!\?) )
    | (?P<count>   (?:[*+?]|\{\d+(?:,\d*)?\})\??(?![*+?]|\{\d) )
    | (?P<same>    \\[bBdDwWfnrtv] | \\[^A-Za-z0-9\s] | \\x[0-9a-fA-F]{2} | \\u[0-9a-fA-F]{4} | [)|^] )
    | (?P<other>   \\s | \\S | \$ | \. | [{}\]] )
    | (?P<plain>   [^\\()\[*+?] )
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_JS_OTHER: Final = {
    r"\s": _JS_SPACE, r"\S": f"[^{_JS_SPACE[1:]}",
    "$": r"\Z", ".": r"[^\n\r\u2028\u2029]", "{": r"\{", "}": r"\}", "]": r"\]",
}  # fmt: skip
_IN_CLASS: Final = re.compile(
    r"(?:[^\\]|\\[bdwfnrtvDW]|\\[^A-Za-z0-9\s]|\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\s)*", re.ASCII | re.DOTALL
)


def python_pattern(pattern: str) -> str:
    """Return the pattern that finds in Python what JavaScript's finds without flags. Raises: NoCounterpart."""
    parts, position = ["(?a)"], 0
    while position < len(pattern):
        token = _JS_TOKEN.match(pattern, position)
        if token is None:
            raise NoCounterpart(f"its pattern has {pattern[position : position + 10]!r}, which Python reads otherwise")
        parts.append(_python_class(token[0]) if token["class"] else _JS_OTHER.get(token[0], token[0]))
        position = token.end()
    return "".join(parts)


def _python_class(text: str) -> str:
    inside = text[2:-1] if text.startswith("[^") else text[1:-1]
    if not inside or not _IN_CLASS.fullmatch(inside):
        raise NoCounterpart(f"its pattern has the class {text[:60]!r}, which Python reads otherwise")
    inside = re.sub(r"\\.|\[", lambda match: {"[": r"\[", r"\s": _JS_SPACE[1:-1]}.get(match[0], match[0]), inside)
    return f"[{'^' if text.startswith('[^') else ''}{inside}]"


def _regex(assertion: Assertion) -> Term:
    value = assertion.value
    if not isinstance(value, str) or not value:
        raise NoCounterpart("its value is not a text")
    pattern = python_pattern(parse(value).render(assertion.variables))
    if len(pattern) > _MAX_FORMULA:
        raise NoCounterpart(f"its pattern has more than {_MAX_FORMULA} characters")
    return Term(({"type": "regex", "input": OUTPUT, "pattern": pattern},))


_LITERAL: Final = r"""(?:'([^'\\]*)'|"([^"\\]*)")"""
_JS_CALL: Final = re.compile(rf"(!?)output(\.toLowerCase\(\))?\.(includes|startsWith)\({_LITERAL}\)")
_JS_EQUAL: Final = re.compile(rf"output\s*(===?|!==?)\s*{_LITERAL}")
_JS_LENGTH: Final = re.compile(r"output\.length\s*(<=|>=|<|>|===?)\s*(\d+)")


def _javascript(assertion: Assertion) -> Term:
    """Return the term of comparisons of the output with literals, which `&&` may join."""
    code = assertion.value
    if not isinstance(code, str) or "{{" in code or file_name(assertion.definition.get("value")):
        raise NoCounterpart(_NO_JAVASCRIPT)
    terms = [_js_comparison(assertion, part.strip()) for part in code.strip().rstrip(";").split("&&")]
    formula, graders = combine(terms)
    return Term(graders, f"min({', '.join(formula)})" if len(terms) > 1 else formula[0])


_NO_JAVASCRIPT: Final = (
    "there is no JavaScript here, and it is more than a comparison of the output: write a python grader"
)


def _js_comparison(assertion: Assertion, code: str) -> Term:
    if match := _JS_LENGTH.fullmatch(code):
        units = 'len(output.encode("utf-16-le", "surrogatepass")) // 2'
        return assertion.python_check(f"{units} {match[1].replace('===', '==')} expected", int(match[2]))
    if match := _JS_EQUAL.fullmatch(code):
        operation = "ne" if match[1].startswith("!") else "eq"
        return _literal_check(assertion, operation, match[2] or match[3] or "")
    if match := _JS_CALL.fullmatch(code):
        literal = match[4] or match[5] or ""
        if not literal or (match[2] and literal != literal.lower()):
            raise NoCounterpart(_NO_JAVASCRIPT)
        if match[3] == "includes":
            term = _literal_check(assertion, "ilike" if match[2] else "like", literal)
        else:
            term = assertion.python_check(f"output{'.lower()' if match[2] else ''}.startswith(expected)", literal)
        return Term(term.graders, "(1 - {0})") if match[1] else term
    raise NoCounterpart(_NO_JAVASCRIPT)


def _literal_check(assertion: Assertion, operation: str, literal: str) -> Term:
    reference = item_path([assertion.fields.add(literal)])
    return Term(({"type": "string_check", "input": OUTPUT, "operation": operation, "reference": reference},))


# ── Python ──

_CHECK: Final = """
def grade(sample, item):
    output, expected = sample["output_text"], item["{field}"]
    return {expression}
"""
_RESULT: Final = '''

def grade(sample, item):
    """Return the score of what Promptfoo's assertion returns."""
    import json

    result = {function}(sample["output_text"], {{"vars": item, "config": {config!r}}})
    if isinstance(result, str):
        result = json.loads(result.lower() if result.lower() in ("true", "false") else result)
    if isinstance(result, (bool, int, float)):
        return float(result)
    passed, score = result.get("pass", result.get("pass_")), float(result["score"])
    if {is_summed} or not isinstance(passed, bool):
        return score
    return max(score, {least}) if passed else min(score, 0.0)
'''


def _python(assertion: Assertion) -> Term:
    """Return the term of code that reads the output and the variables alone."""
    value = assertion.definition.get("value")
    name = file_name(value)
    if name is None:
        code, function = _inline_python(value), "main"
    else:
        name, _, function = name.partition(":")
        code, function = assertion.folder.text(name), function or "get_assert"
    _check_python(code, function, assertion.folder)
    threshold = assertion.threshold
    if threshold is not None and not 0 < threshold <= 1:
        raise NoCounterpart("its threshold is not above 0 and at most 1")
    least = threshold or _ABOVE_ZERO
    source = code + _RESULT.format(
        function=function, config=assertion.definition.get("config") or {}, is_summed=assertion.is_summed, least=least
    )
    assertion.remark(assertion.kind, "the code runs in the sandbox of python graders, with its packages alone", False)
    return Term(({"type": "python", "source": source},), threshold=least)


def _inline_python(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise NoCounterpart("its value is not code")
    if "{{" in value or "{%" in value:
        raise NoCounterpart("its code is a template")
    lines = value.rstrip().split("\n")
    indent = next((match[0] for line in lines if (match := re.match(r"\s+(?=\S)", line))), "    ")
    body = "\n".join(f"{indent}{line}" for line in lines) if len(lines) > 1 else f"    return {value.strip()}"
    return f"import json\n\ndef main(output, context):\n{body}\n"


def _check_python(code: str, function: str, folder: ConfigFolder) -> None:
    """Check that code has a function which needs nothing that only Promptfoo gives. Raises: NoCounterpart."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NoCounterpart("its code is not Python") from error
    defined = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in (function, "grade")]
    if [node.name for node in defined] != [function] or len(defined[-1].args.args) != 2:
        raise NoCounterpart(f"its code has no function {function}(output, context)")
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or "."])
    }
    if own := sorted(
        name for name in imported if not name or (folder.root / f"{name}.py").exists() or (folder.root / name).is_dir()
    ):
        raise NoCounterpart(f"its code imports {own[0] or 'a module'!r} of its own folder")
    context = defined[-1].args.args[1].arg
    uses = sum(isinstance(node, ast.Name) and node.id == context for node in ast.walk(tree))
    known = sum(_is_known_use(node, context) for node in ast.walk(tree))
    if uses > known:
        raise NoCounterpart("its code reads more of the context than 'vars' and 'config'")


def _is_known_use(node: ast.AST, context: str) -> bool:
    """Return whether a node is `context["vars"]` or `context.get("vars", …)`, or the same of `config`."""
    match node:
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value="vars" | "config")):
            return name == context
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id=name), attr="get"), args=[ast.Constant(value="vars" | "config"), *_]
        ):
            return name == context
    return False


# ── judges ──

_QUESTION: Final = "<Question>\n{{question}}\n</Question>\n"
_RUBRIC: Final = "Does the answer fulfil the rubric?\n<Answer>\n{{output}}\n</Answer>\n<Rubric>\n{{rubric}}\n</Rubric>"
_CLOSED: Final = """{question}Does the answer meet the criterion?
<Answer>
{{{{completion}}}}
</Answer>
<Criterion>
{{{{criteria}}}}
</Criterion>"""
_FACTS: Final = """{question}Compare the facts of the answer with those of the expert. Ignore style and grammar.
<Expert>
{{{{ideal}}}}
</Expert>
<Answer>
{{{{completion}}}}
</Answer>
A: the answer has a part of the expert's facts, and no others. B: it has all of them and further ones, which agree.
C: it has the same facts. D: the two contradict each other. E: they differ in what does not matter for the facts."""


def _rubric(assertion: Assertion) -> Term:
    value = assertion.value
    if isinstance(value, dict | list):
        _check_literal(value)
        value = json.dumps(value, ensure_ascii=False)
    rubric = assertion.text(value) if value not in (None, "") else ""
    messages = assertion.messages(_RUBRIC, {"output": OUTPUT, "rubric": rubric})
    grader = assertion.judge("instruction and form of an answer") | {"input": messages}
    if (threshold := assertion.threshold) is not None:
        assertion.remark(
            assertion.kind, "with a threshold the judge gives a score alone, without a verdict beside it", False
        )
        return Term((grader | {"type": "score_model"},), threshold=threshold)
    return Term((grader | {"type": "label_model", "labels": ["pass", "fail"], "passing_labels": ["pass"]},))


def _labels(assertion: Assertion, text: str, expected: str, labels: list[str], passing: list[str]) -> Term:
    if not assertion.question:
        assertion.remark(assertion.kind, "the judge does not see the question: there is more than one prompt", False)
    names = {"completion": OUTPUT, "input": assertion.question, "question": assertion.question}
    default = text.format(question=_QUESTION if assertion.question else "")
    messages = assertion.messages(default, names | {expected: assertion.text(assertion.value)})
    grader = assertion.judge("instruction and form of an answer")
    return Term((grader | {"type": "label_model", "input": messages, "labels": labels, "passing_labels": passing},))


def _plan_closed_qa(assertion: Assertion) -> Term:
    return _labels(assertion, _CLOSED, "criteria", ["Y", "N"], ["Y"])


def _factuality(assertion: Assertion) -> Term:
    given = assertion.options.get("factuality") or {}
    names = {"A": "subset", "B": "superset", "C": "agree", "D": "disagree", "E": "differButFactual"}
    scores = {label: given.get(name, int(label != "D")) for label, name in names.items()}
    if not all(score in (0, 1) for score in scores.values()) or not any(scores.values()):
        raise NoCounterpart("its categories have scores between 0 and 1")
    return _labels(assertion, _FACTS, "ideal", list(names), [label for label, score in scores.items() if score])


def _context_judge(assertion: Assertion, kind: str, texts: Object) -> Term:
    if assertion.definition.get("contextTransform") or "context" not in assertion.variables:
        raise NoCounterpart("its context is not the variable 'context'")
    if assertion.threshold is None:
        assertion.remark(
            assertion.kind, "without a threshold it passes from 0.5 on, as Promptfoo's newest version has it", False
        )
    grader = assertion.judge("statements and verdicts") | {"type": kind, "context": item_path(["context"])} | texts
    return Term((grader,), threshold=0.5 if assertion.threshold is None else assertion.threshold)


def _context_recall(assertion: Assertion) -> Term:
    return _context_judge(assertion, "context_recall", {"reference": assertion.text(assertion.value)})


#: The types that mean the same here. Those of `NEGATABLE` also with `not-` before them.
RULES: Final[Mapping[str, Callable[[Assertion], Term]]] = {
    "equals": _equals,
    "contains": lambda assertion: _comparison(assertion, "like"),
    "icontains": lambda assertion: _comparison(assertion, "ilike"),
    "contains-any": lambda assertion: _comparisons(assertion, "like", "max"),
    "contains-all": lambda assertion: _comparisons(assertion, "like", "min"),
    "icontains-any": lambda assertion: _comparisons(assertion, "ilike", "max"),
    "icontains-all": lambda assertion: _comparisons(assertion, "ilike", "min"),
    "regex": _regex,
    "starts-with": _starts_with,
    "finish-reason": _finish_reason,
    "is-json": _is_json,
    "similar": _similar,
    "similar:cosine": _similar,
    "javascript": _javascript,
    "python": _python,
    "llm-rubric": _rubric,
    "model-graded-closedqa": _plan_closed_qa,
    "model-graded-factuality": _factuality,
    "factuality": _factuality,
    "context-faithfulness": lambda assertion: _context_judge(assertion, "faithfulness", {"input": OUTPUT}),
    "context-recall": _context_recall,
}
NEGATABLE: Final = re.compile(
    "equals|i?contains(?:-any|-all)?|regex|starts-with|is-json|similar(?::cosine)?|javascript|llm-rubric"
)
_MEASURED: Final = "an item has its text alone: neither price, time, probabilities nor the trace of its answer"
_FORMULA: Final = "the formula is another one here: see text_similarity, answer_relevance and context_precision"
_CODE: Final = "it needs Promptfoo's own code: write a python grader"
#: Why the other types of Promptfoo's schema do not come over.
REASONS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("bleu", "gleu", "meteor", "rouge-l", "rouge-n", "rouge-s"), _FORMULA),
    **dict.fromkeys(("answer-relevance", "context-relevance", "conversation-relevance"), _FORMULA),
    **dict.fromkeys(("cost", "latency", "perplexity", "perplexity-score", "skill-used"), _MEASURED),
    **dict.fromkeys(("trace-error-spans", "trace-span-count", "trace-span-duration"), _MEASURED),
    **dict.fromkeys(("trajectory:goal-success", "trajectory:step-count", "trajectory:tool-args-match"), _MEASURED),
    **dict.fromkeys(("trajectory:tool-sequence", "trajectory:tool-used"), _MEASURED),
    **dict.fromkeys(("contains-html", "contains-json", "contains-sql", "contains-xml", "is-html", "is-sql"), _CODE),
    **dict.fromkeys(("is-xml", "is-refusal", "levenshtein", "word-count", "ruby", "tool-call-f1"), _CODE),
    **dict.fromkeys(("is-valid-function-call", "is-valid-openai-function-call"), _CODE),
    **dict.fromkeys(("is-valid-openai-tools-call",), _CODE),
    **dict.fromkeys(("similar:dot", "similar:euclidean"), "only the cosine of two vectors is measured here"),
    **dict.fromkeys(("g-eval", "agent-rubric", "search-rubric"), "its judge takes several steps: see score_model"),
    **dict.fromkeys(("classifier", "guardrails", "moderation", "pi", "webhook"), "another service decides it"),
    **dict.fromkeys(("select-best", "max-score"), "it compares the answers of several models: see pairwise"),
    "human": "people grade it",
}
