"""All hierarchical posteriors, by name."""

from functools import partial

from vilvm.data.problem import Problem

from . import funnel, horseshoe, item_response, poisson, radon, schools, seeds
from .summary import read_summary

__all__ = ["names", "posterior"]

_FAMILIES = (
    funnel.POSTERIORS,
    horseshoe.POSTERIORS,
    item_response.POSTERIORS,
    poisson.POSTERIORS,
    radon.POSTERIORS,
    schools.POSTERIORS,
    seeds.POSTERIORS,
)
_POSTERIORS = {name: state for family in _FAMILIES for name, state in family.items()}


def names() -> list[str]:
    """The names of all posteriors, sorted.

    Returns:
        Names for ``posterior``.

    Examples:
        >>> from vilvm.models.hierarchical import names
        >>> len(names()), names()[0]
        (8, 'eight_schools_centred')
    """
    return sorted(_POSTERIORS)


def posterior(name: str) -> Problem:
    """A hierarchical posterior by its name, with its model, data and reference moments.

    The data are in the package. They have torch's default dtype, or int64 where they are indices:
    set the default to float64 for inference in float64.

    Arguments:
        name: one of ``names()``.

    Returns:
        Problem; its ``reference()`` is a ``Summary``.

    Raises:
        ValueError: there is no posterior of this name.

    Examples:
        >>> from vilvm.models.hierarchical import posterior
        >>> posterior("funnel").reference().sd("v")
        3.0
    """
    if name not in names():
        raise ValueError(f"posterior: no model of {name!r}; choose from {names()}.")
    statement = _POSTERIORS[name]()
    return Problem(
        name,
        statement.model,
        statement.data_of_default_dtype(),
        statement.parameters,
        partial(read_summary, name),
    )
