"""Graders: one module for each type, and the registry that finds them.

    string_check      compare two texts                          score 0 or 1
    text_similarity   measure how alike two texts are            `jobs.evals.text_metrics`
    label_model       let a model choose a label                 score 0 or 1
    score_model       let a model give a score                   within `range`
    python            run code in the sandbox of a worker        any number
    multi             compute a score from those of others       `jobs.evals.formulas`

Types beyond OpenAI's:

    exact_match, regex, json_schema                     score 0 or 1
    pairwise                                            let a model choose the better of two answers
    faithfulness, answer_relevance,
    context_precision, context_recall                   judge answers and contexts           `grounded`
    ranking                                             measure a list of names              `jobs.retrieval.metrics`
    perplexity                                          the likelihood of the item's text

A module has the definition of its grader, what it asks models, how it grades, what it needs of a deployment and what it
may cost: see `base`. To add a grader is to add a module. `Grader` is the type of a request's field; errors in it are
validation errors of the request. Any other definition is read with `parse_grader`.
"""

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Any, Final, Union, get_args

from pydantic import Field, TypeAdapter

from jobs.evals import templates
from jobs.evals.graders import base


def _load_types() -> dict[str, type[base.Grader]]:
    """Return the classes of all graders by their types: those of this package that name a type."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    graders = [value for value in classes if issubclass(value, base.Grader)]
    types = {kind: grader for grader in graders for kind in _types_of(grader)}
    return dict(sorted(types.items(), key=lambda entry: (not entry[1].is_openai, entry[0])))


def _types_of(grader: type[base.Grader]) -> tuple[str, ...]:
    field = grader.model_fields.get("type")
    return get_args(field.annotation) if field else ()


#: The graders by their types, OpenAI's first.
TYPES: Final[Mapping[str, type[base.Grader]]] = _load_types()

if TYPE_CHECKING:
    Grader = base.Grader
else:
    _single = Union[tuple(grader for grader in TYPES.values() if not grader.combines)]  # noqa: UP007 (nobody can write them down)
    for _grader in TYPES.values():
        _grader.model_rebuild(_types_namespace={"Single": Annotated[_single, Field(discriminator="type")]})
    Grader = Annotated[Union[tuple(TYPES.values())], Field(discriminator="type")]  # noqa: UP007

_adapter: Final[TypeAdapter[Grader]] = TypeAdapter(Grader)


def parse_grader(definition: Mapping[str, Any], *, is_stored: bool = False) -> Grader:
    """Return the grader of a definition. What a stored one has was accepted when it was made, and is not refused now.

    Raises: pydantic.ValidationError.
    """
    return _adapter.validate_python(definition, context={"is_stored": is_stored})


def dump_grader(grader: Grader) -> dict[str, Any]:
    """Return the definition as it is stored and shown: without fields that the client left out."""
    return grader.model_dump(mode="json", by_alias=True, exclude_none=True)


def judge_models(grader: Grader) -> list[str]:
    """Return the models that judge, each once."""
    return [model for _, model in grader.models(None)]


def references_of(grader: Grader) -> list[templates.TemplateReference]:
    """Return the placeholders of all templates of a grader."""
    return [reference for text in grader.templates() for reference in templates.references(text)]


def kinds() -> dict[str, dict[str, Any]]:
    """Return the graders of the command line by their kinds: the fields that a kind stands for."""
    return {
        kind: {"type": name, grader.kind_field: kind, **grader.kind_fields}
        for name, grader in TYPES.items()
        if grader.kind_field
        for kind in get_args(grader.model_fields[grader.kind_field].annotation)
    }
