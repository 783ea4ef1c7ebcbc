"""Running one half of a pair, and reading the trace it leaves: the only file that asks Pyro for
one.
"""

import hashlib
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from vilvm._runtime.memory import is_out_of_memory
from vilvm._runtime.unchanged import Unchanged
from vilvm.data.tensors import named_tensors, tensors_of
from vilvm.lvm import ContractError, NonFiniteError

__all__ = [
    "Lines",
    "Put",
    "Sites",
    "Unobserved",
    "can_score",
    "family",
    "log_prob",
    "mask_of",
    "mask_tensor",
    "nesting_of",
    "own_densities",
    "own_dims",
    "plain",
    "plate_dims",
    "run",
    "run_once",
    "sites_of",
    "strip",
    "to_put",
    "unstrip",
    "was_observed",
    "without_shapes",
]

Sites = dict[str, Any]
_MOST_PLATES = 6  # dimensions that plates are supposed to take at most, where it has to be tried


def run(
    half: Any,
    part: str,
    batch: Any,
    *replay: poutine.Trace | None,
    samples: tuple[int, int] | None = None,
) -> poutine.Trace:
    """The trace of one half of a pair, sites taken from `replay`, under a plate over samples
    (their number, its dimension), or none.
    """
    for source in replay:
        half = half if source is None else poutine.replay(half, trace=source)
    given = Unchanged(named_tensors(batch))
    with _plain_errors(part, batch), ExitStack() as stack:
        if samples is not None:
            stack.enter_context(pyro.plate("_monte_carlo", samples[0], dim=samples[1]))
        trace = poutine.trace(half).get_trace(batch)
    given.check(f"The {part}")
    return trace


def run_once(model: Any, batch: Any, *replay: poutine.Trace | None) -> tuple[poutine.Trace, int]:
    """The trace of a model at one sample, and 0; or, if it runs under enumeration only, at the
    first value of what is enumerated.

    An assertion of shapes may hold under enumeration only. How many dimensions the plates take is
    then not known beforehand: the least number with which the model runs is the second result.
    """
    try:
        return run(model, "model", batch, *replay), 0
    except ContractError:
        for nesting in range(_MOST_PLATES + 1):
            with suppress(ContractError):
                trace = run(
                    poutine.enum(model, first_available_dim=-1 - nesting), "model", batch, *replay
                )
                if any(
                    s["infer"].get("_enumerate_dim") is not None for s in sites_of(trace).values()
                ):
                    return _at_first_values(trace, nesting), nesting
        raise


def _at_first_values(trace: poutine.Trace, nesting: int) -> poutine.Trace:
    """A trace without the dimensions left of the plates', each at its first place."""
    for site in sites_of(trace).values():
        fn = site["fn"]
        extra = site["value"].dim() - fn.event_dim - nesting
        site["value"] = site["value"][(0,) * max(extra, 0)]
        site["fn"] = _First(fn, nesting)
    return trace


class _First(dist.TorchDistribution):
    """A distribution at the first place of its dimensions left of the plates'."""

    def __init__(self, base: Any, nesting: int):
        self.base_dist, self.nesting = base, nesting
        left = max(len(base.batch_shape) - nesting, 0)
        super().__init__(base.batch_shape[left:], base.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.base_dist.support

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        return self.base_dist.has_enumerate_support

    def log_prob(self, value: Tensor) -> Tensor:
        found = self.base_dist.log_prob(value)
        return found[(0,) * max(found.dim() - self.nesting, 0)]


_AROUND = (
    torch.distributions.Independent,
    dist.ExpandedDistribution,
    dist.MaskedDistribution,
    _First,
)


@contextmanager
def without_shapes() -> Iterator[None]:
    """Within it, a ContractError stays one sentence: Pyro appends the shapes of the trace to
    whatever passes through.
    """
    try:
        yield
    except ContractError as error:
        if "Trace Shapes:" not in str(error):
            raise
        raise type(error)(_sentence(error)) from None


def _sentence(error: Exception) -> str:
    """What an error says, on one line and without the shapes of a trace."""
    return " ".join(str(error).split("Trace Shapes:")[0].split())


@contextmanager
def _plain_errors(part: str, batch: Any) -> Iterator[None]:
    """Turns an error inside the user's model or guide into one sentence with the user's own line
    in it.
    """
    try:
        yield
    except ContractError as error:
        # Pyro appends the shapes of the trace to whatever passes through
        raise type(error)(_sentence(error)) from None
    except (torch.OutOfMemoryError, NotImplementedError) as error:
        if "ImproperUniform" not in str(error):
            raise
        raise ContractError(
            f"The {part} has a flat prior, from which nothing can be drawn: put a proper prior on "
            "its latents to draw from it."
        ) from None
    except (
        RuntimeError,
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        AttributeError,
        AssertionError,
        ArithmeticError,
    ) as error:
        if is_out_of_memory(error):  # for which fewer samples are taken at once
            raise
        where = _user_line(error)
        reason = _first_words(error)
        advice = f"Check the shapes and values that the {part} makes of this batch."
        if (
            "must have the same dtype" in reason
            or "Found dtype" in reason
            or "expected scalar type" in reason
        ):
            advice = (
                "The data and the model's parameters are of two number types: convert the data, "
                ".float() or .double()."
            )
        elif isinstance(error, KeyError):
            advice = (
                "If it is a pyro.param, give it an initial value where it is met first: the guide "
                "runs before the model."
            )
        # not in the user's own code
        elif isinstance(error, TypeError) and "positional argument" in reason and not where:
            advice = (
                f"The {part} gets the batch alone: pass several tensors as a tuple and unpack it, "
                f"lambda batch: {part}(*batch)."
            )
        kind = NonFiniteError if reason.endswith("but found NaN.") else ContractError
        raise kind(
            f"The {part} fails on a batch of {_describe(batch)}{where}: {type(error).__name__}: "
            f"{reason} {advice}"
        ) from None


def _first_words(error: Exception) -> str:
    """What an error says, on one line and without the tensors and traces that Pyro and torch print
    behind it.
    """
    reason, found, values = _sentence(error).partition("but found invalid values")
    return reason[:400] + (
        f"but found {'NaN' if 'nan' in values else 'other values'}." if found else ""
    )


def _user_line(error: Exception) -> str:
    """' (in FUNCTION, FILE:LINE)' of the innermost frame that is neither vilvm's nor an installed
    package's.
    """
    return _place(traceback.extract_tb(error.__traceback__))


def _place(stack: traceback.StackSummary) -> str:
    own = (
        str(Path(__file__).parents[1]),
        "site-packages",
        "contextlib",
        "<frozen",
        str(Path(traceback.__file__).parent),
    )
    frames = [f for f in stack if not any(part in f.filename for part in own)]
    return (
        f" (in {frames[-1].name}, {Path(frames[-1].filename).name}:{frames[-1].lineno})"
        if frames
        else ""
    )


class Lines(Messenger):
    """Notes the user's line of every sample statement, as ' (in FUNCTION, FILE:LINE)', by site."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, str] = {}

    def _pyro_sample(self, msg: Any) -> None:
        self.of[msg["name"]] = _place(traceback.extract_stack())


def _describe(batch: Any) -> str:
    shapes = [str(tuple(t.shape)) for t in tensors_of(batch)]
    return (
        f"shape {shapes[0]}"
        if len(shapes) == 1
        else f"shapes {', '.join(shapes)}"
        if shapes
        else f"type {type(batch).__name__}"
    )


def sites_of(trace: Any) -> Sites:
    """The sample sites of a trace by name, without a plate's own draw of a subsample and without
    ``pyro.deterministic``.
    """
    return {
        n: s
        for n, s in trace.nodes.items()
        if s["type"] == "sample"
        and not site_is_subsample(s)
        and not s["infer"].get("_deterministic")
    }


class Unobserved(UnconditionMessenger):
    """Draws what is observed, but for ``pyro.deterministic``: drawn anew, such a value would be
    blown up to its plates.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["infer"].get("_deterministic"):
            super()._pyro_sample(msg)


def was_observed(site: Any) -> bool:
    """Whether a site of an unconditioned model was observed as it is written."""
    return bool(site["infer"].get("was_observed"))


def family(fn: Any) -> str:
    """The name of a distribution, under ``to_event``, ``mask`` and ``expand``."""
    return type(plain(fn)).__name__


def plain(fn: Any) -> Any:
    """A distribution without what ``to_event``, ``mask`` and ``expand`` put around it."""
    while isinstance(fn, _AROUND):
        fn = fn.base_dist
    return fn


def mask_of(site: Any) -> str:
    """A digest of what a site's log-density leaves out, by ``mask`` or ``poutine.mask``; empty if
    it leaves nothing out.
    """
    masks = [m.cpu() for m in _masks(site)]
    partial = [m.contiguous().numpy().tobytes() for m in masks if not bool(m.all())]
    return hashlib.sha256(b"".join(partial)).hexdigest()[:8] if partial else ""


def mask_tensor(site: Any) -> Tensor | None:
    """Which entries of a site's value its log-density scores, broadcastable to the value; None if
    all of them.
    """
    masks = _masks(site)
    if not masks:
        return None
    mask = masks[0]
    for other in masks[1:]:
        mask = mask & other
    return mask


def _masks(site: Any) -> list[Tensor]:
    """The masks of a site, each with a dimension for every event dimension of the distribution
    that it lies around.
    """
    fn: Any = site["fn"]
    device = site["value"].device
    found = [(site["mask"], fn.event_dim)]
    while isinstance(fn, _AROUND):
        found.append((getattr(fn, "_mask", None), len(fn.event_shape)))
        fn = fn.base_dist
    masks = [(torch.as_tensor(m, device=device), event) for m, event in found if m is not None]
    return [m.reshape(m.shape + (1,) * event) for m, event in masks]


def log_prob(part: str, site: Any) -> Tensor:
    """The log-density of a site, masked but not scaled."""
    try:
        value = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    except KeyError as error:
        if "intermediates cache" not in str(error):
            raise
        raise ContractError(
            f"The {part}'s site {site['name']!r} has a transform without an inverse, so only what "
            "it draws itself has a density, and a given value "
            "has none: use a transform with an inverse (spline, affine_coupling, "
            "affine_autoregressive)."
        ) from None
    except (ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = _first_words(error)
        raise ContractError(
            f"The {part}'s site {site['name']!r} cannot score its value of shape "
            f"{tuple(site['value'].shape)}: {reason} "
            "Check the value's shape and that it lies in the distribution's support (a Bernoulli "
            "needs 0 or 1: binarise)."
        ) from None
    return scale_and_mask(value, mask=site["mask"])


def to_put(name: str, site: Any, num_samples: int, nesting: int) -> tuple[str, Tensor]:
    """What ``Put`` is to be given so that a site takes the value that it drew: a key and the
    value, as ``strip`` leaves it.

    Where a transform has no inverse, as pyro's planar, radial and block autoregressive flows, a
    value has a density only if it has just been computed: then it is the draw before the
    transforms that is put.
    """
    before = _before_transforms(site)
    if before is None:
        return name, strip(site["value"], site, num_samples, nesting)
    return name + _BEFORE, strip(before, site, num_samples, nesting)


_BEFORE = " before its transforms"
# whether transforms of a type can be inverted at values that they have not just computed
_inverted: dict[type, bool] = {}


def can_score(site: Any) -> bool:
    """Whether a site that has just been drawn has a density of any value, and not only of the very
    tensor that it drew.
    """
    return _before_transforms(site) is None


def _before_transforms(site: Any) -> Tensor | None:
    """The draw of which a site's transforms made its value, where they cannot be inverted at other
    values; else None.
    """
    fn, value = plain(site["fn"]), site["value"]
    if not isinstance(fn, torch.distributions.TransformedDistribution):
        return None
    with torch.no_grad():
        found = value
        for transform in reversed(_parts(fn.transforms)):
            kind = type(transform)
            if kind not in _inverted:
                _inverted[kind] = kind.__module__.startswith("torch.") or _can_invert(
                    transform, found
                )
            found = transform.inv(found)
    return None if all(_inverted[type(t)] for t in _parts(fn.transforms)) else found


def _parts(transforms: list[Any]) -> list[Any]:
    """Transforms in their order, without what composes them."""
    return [
        p
        for t in transforms
        for p in (_parts(t.parts) if isinstance(t, torch.distributions.ComposeTransform) else [t])
    ]


def _can_invert(transform: Any, value: Tensor) -> bool:
    try:
        transform._inverse(value.clone())
    except (KeyError, NotImplementedError):
        return False
    return True


def strip(value: Tensor, site: Any, num_samples: int, nesting: int) -> Tensor:
    """A site's value as (S, *its own dimensions, *event): dimensions of plates that it does not
    stand in are dropped.
    """
    return _strip(value, own_dims(site), site["fn"].event_dim, num_samples, nesting)


def own_densities(part: str, sites: Sites, num_samples: int, nesting: int) -> dict[str, Tensor]:
    """The log-density of every site at its value, shape (S, *its own dimensions); without those
    that know none.
    """
    found = {}
    for name, site in sites.items():
        with suppress(NotImplementedError):
            found[name] = _strip(log_prob(part, site), own_dims(site), 0, num_samples, nesting)
    return found


def _strip(value: Tensor, own: set[int], event: int, num_samples: int, nesting: int) -> Tensor:
    value = value.reshape((1,) * (nesting + 1 + event - value.dim()) + value.shape)
    value = value.expand(num_samples, *value.shape[1:])
    # from the left, for what is counted from the right stays where it is
    for dim in range(-nesting, 0):
        if dim not in own:
            value = value.squeeze(dim - event)
    return value


def unstrip(value: Tensor, site: Any, nesting: int) -> Tensor:
    """What ``strip`` left of a value, with a dimension of size one again for every dimension that
    is not the site's own.
    """
    own = own_dims(site)
    for dim in range(-nesting, 0):
        if dim not in own:
            value = value.unsqueeze(nesting + 1 + dim)
    return value


def plate_dims(site: Any) -> set[int]:
    """The dimensions of the plates that a site stands in."""
    return {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}


def own_dims(site: Any) -> set[int]:
    """The dimensions of a site's batch shape: those of its plates, and those right of a plate that
    none declares.
    """
    shape = site["fn"].batch_shape
    return plate_dims(site) | {dim for dim in range(-len(shape), 0) if shape[dim] > 1}


def nesting_of(*parts: Sites) -> int:
    """How many dimensions the plates of these sites, and their batch shapes, take."""
    taken = [0]
    for site in (site for sites in parts for site in sites.values()):
        taken += [-dim for dim in plate_dims(site)]
        taken.append(len(site["fn"].batch_shape))
    return max(taken)


class Put(Messenger):
    """Puts sites at given values.

    Arguments:
        values: by site, shape (num_samples, *own dimensions, *event), as ``strip`` leaves them.
        num_samples: of the plate over samples; None if the pair is run once, without that plate.
        nesting: dimensions that the plates take; in a run without a plate over samples, None if it
            is not known.
    """

    def __init__(self, values: Mapping[str, Tensor], num_samples: int | None, nesting: int | None):
        super().__init__()
        self.values, self.num_samples, self.nesting = values, num_samples, nesting

    def _pyro_sample(self, msg: Any) -> None:
        value, before = self.values.get(msg["name"]), self.values.get(msg["name"] + _BEFORE)
        if (
            (value is None and before is None)
            or msg["done"]
            or (msg["is_observed"] and msg["value"] is not None)
        ):
            return
        if value is not None:
            msg["value"] = self._placed(value, msg)
        elif before is not None:
            found = self._placed(before, msg)
            for transform in plain(msg["fn"]).transforms:
                found = transform(found)
            msg["value"] = found
        msg["done"] = True

    def _placed(self, value: Tensor, msg: Any) -> Tensor:
        shape = tuple(msg["fn"].shape())
        if self.num_samples is not None:
            placed = unstrip(value, msg, self.nesting or 0)
            shape = (*placed.shape[:1], *shape[len(shape) - placed.dim() + 1 :])
        else:
            placed = value[0]
            # left of the plates' dimensions are those of enumerated latents
            if self.nesting is not None:
                shape = shape[max(len(shape) - self.nesting - msg["fn"].event_dim, 0) :]
        wanted = tuple(n for n in shape[self.num_samples is not None :] if n > 1)
        if tuple(n for n in value.shape[1:] if n > 1) != wanted:
            raise ContractError(
                f"Latent {msg['name']!r} was given draws of shape {tuple(value.shape[1:])}, and a "
                f"draw of it has shape {wanted}."
            )
        return placed if self.num_samples is not None else placed.reshape(shape)
