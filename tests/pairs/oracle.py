"""Reference values for pairs: plain Pyro, one sample at a time, and closed forms.

Nothing here depends on how vilvm runs a pair. ``replayed`` sets the latents of one sample in the
user's own functions and sums the log-densities of Pyro's traces; ``gaussian`` and ``discrete``
make pairs whose guide is the exact posterior, so that the log-weight of every single sample is log
p(x).
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import ReshapeTransform

import vilvm
from vilvm.lvm import evaluation_mode, module_parameters

__all__ = [
    "Exact",
    "discrete",
    "gaussian",
    "log_joint",
    "pair",
    "plain_log_weight",
    "pyro_elbos",
    "replayed",
    "shared_gaussian",
]


class Exact(NamedTuple):
    """A pair whose guide is the exact posterior.

    Arguments:
        lvm: the pair.
        batch: its data.
        evidence: log p(x), shape (num_data,), or () if the data share a latent.
        sizes: further numbers of samples, at which a wrong broadcast would have the right shape.
    """

    lvm: Any
    batch: Any
    evidence: Tensor
    sizes: tuple[int, ...]


def sites(trace: Any) -> dict[str, Any]:
    """The sample sites of a trace that have a density."""
    return {
        n: s
        for n, s in trace.nodes.items()
        if s["type"] == "sample"
        and not site_is_subsample(s)
        and not s["infer"].get("_deterministic")
    }


def log_joint(trace: Any, masks: dict[str, Any] | None = None) -> Tensor:
    """The sum of a trace's log-densities, masked by its sites and `masks`, and not scaled."""
    total = torch.zeros((), dtype=torch.float64)
    for name, site in sites(trace).items():
        value = scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])
        value = scale_and_mask(
            value, mask=(masks or {}).get(name.removesuffix("_unconstrained"))
        )
        total = total + value.double().sum()
    return total


@torch.no_grad()
def replayed(
    lvm: Any,
    batch: Any,
    latents: dict[str, Tensor],
    auxiliary: Callable[[dict[str, Tensor]], Any] | None = None,
) -> Tensor:
    """log p − log q of every sample by plain Pyro, summed over the data, shape (S,).

    `auxiliary` gives the values of the guide's auxiliary sites from those of the latents, by
    default those of Pyro's autoguides. A latent that the model masks is marginalised, so the
    guide's density leaves it out, too.
    """
    count = len(next(iter(latents.values())))
    with module_parameters(lvm):
        prototype = poutine.trace(lvm.guide).get_trace(batch)
        found = []
        for s in range(count):
            values = {
                n: v[s].reshape(prototype.nodes[n]["value"].shape)
                for n, v in latents.items()
            }
            rest = (
                auxiliary(values)
                if auxiliary is not None
                else _unconstrained(lvm, values, prototype)
            )
            guide = poutine.trace(_replay(lvm.guide, {**values, **rest})).get_trace(
                batch
            )
            for name, value in values.items():
                assert torch.allclose(
                    guide.nodes[name]["value"].to(value), value, rtol=1e-4, atol=1e-4
                )
            model = poutine.trace(poutine.replay(lvm.model, trace=guide)).get_trace(
                batch
            )
            masks = {
                n: site["mask"]
                for n, site in sites(model).items()
                if not site["is_observed"]
            }
            found.append(log_joint(model) - log_joint(guide, masks))
    return torch.stack(found)


@torch.no_grad()
def plain_log_weight(lvm: Any, batch: Any) -> float:
    """log p − log q of one run by plain Pyro at a draw of the guide, summed over the data."""
    with module_parameters(lvm), evaluation_mode(lvm):
        guide = poutine.trace(lvm.guide).get_trace(batch)
        model = poutine.trace(poutine.replay(lvm.model, trace=guide)).get_trace(batch)
    masks = {
        n: site["mask"] for n, site in sites(model).items() if not site["is_observed"]
    }
    masks |= {
        n: _mask(site["fn"])
        for n, site in sites(model).items()
        if not site["is_observed"] and _mask(site["fn"]) is not None
    }
    return (log_joint(model) - log_joint(guide, masks)).item()


def _mask(fn: Any) -> Any:
    """The mask that ``.mask`` put on a distribution, or None."""
    return getattr(fn, "_mask", None)


def _replay(guide: Any, values: dict[str, Tensor]) -> Any:
    """A guide scored at these values, as if it had drawn them."""

    def hit(site: dict[str, Any]) -> None:
        if (
            site["type"] == "sample"
            and not site["is_observed"]
            and site["name"] in values
            and not _is_delta(site["fn"])
        ):
            site["value"], site["done"] = values[site["name"]], True

    class Put(poutine.messenger.Messenger):
        def _pyro_sample(self, msg: Any) -> None:
            hit(msg)

    return Put()(guide)


def _is_delta(fn: Any) -> bool:
    while isinstance(
        fn,
        torch.distributions.Independent
        | dist.ExpandedDistribution
        | dist.MaskedDistribution,
    ):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def _unconstrained(
    lvm: Any, values: dict[str, Tensor], prototype: Any
) -> dict[str, Tensor]:
    """The auxiliary draws of Pyro's autoguides that give these latents."""
    auxiliary = [
        n
        for n, s in prototype.nodes.items()
        if s["type"] == "sample" and s["infer"].get("is_auxiliary")
    ]
    if not auxiliary:
        return {}
    guide = lvm.guide
    free = {
        n: biject_to(guide.prototype_trace.nodes[n]["fn"].support).inv(v)
        for n, v in values.items()
    }
    if auxiliary == [f"_{guide._pyro_name}_latent"]:
        order = [n for n in guide.prototype_trace.nodes if n in free]
        return {auxiliary[0]: torch.cat([free[n].reshape(-1) for n in order])}
    return {f"{n}_unconstrained": v for n, v in free.items()}


@torch.no_grad()
def pyro_elbos(
    lvm: Any,
    batch: Any,
    count: int,
    scale: float = 1.0,
    elbo: Any = None,
    training: bool = False,
) -> tuple[float, float]:
    """The mean of `count` one-particle ELBOs of Pyro, summed over the data, and its MC error.

    In evaluation mode, unless `training`.
    """
    elbo = Trace_ELBO() if elbo is None else elbo
    with module_parameters(lvm), nullcontext() if training else evaluation_mode(lvm):
        found = (
            torch.tensor(
                [-elbo.loss(lvm.model, lvm.guide, batch) for _ in range(count)],
                dtype=torch.float64,
            )
            / scale
        )
    return found.mean().item(), (found.std() / count**0.5).item()


def pair(
    model: Callable[[Any, Tensor], Any], guide: Callable[[Any], Any]
) -> vilvm.Pair:
    """A pair with one parameter without effect, so that ``fit`` has one to train.

    The model adds its second argument, 0.
    """

    def with_parameter(batch: Any) -> None:
        model(batch, 0.0 * pyro.param("nothing", torch.tensor(1.0)))

    return vilvm.Pair(with_parameter, guide)


def _posterior(
    A: Tensor, b: Tensor, x: Tensor, noise: float
) -> tuple[dist.MultivariateNormal, Tensor]:
    """p(z | x) and log p(x) for z ~ N(0, I), x ~ N(A z + b, noise²), batched; float64."""
    precision = torch.eye(A.shape[-1], dtype=A.dtype) + A.mT @ A / noise**2
    mean = torch.linalg.solve(
        precision, (A.mT @ (x - b).unsqueeze(-1)) / noise**2
    ).squeeze(-1)
    covariance = A @ A.mT + noise**2 * torch.eye(A.shape[-2], dtype=A.dtype)
    evidence = torch.distributions.MultivariateNormal(b, covariance).log_prob(x)
    return dist.MultivariateNormal(mean, precision_matrix=precision), evidence


def gaussian(
    decode: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    out: tuple[int, ...] = (),
    num_data: int = 7,
    noise: float = 0.7,
) -> Exact:
    """A local latent of `shape` with a linear mean.

    ``decode`` maps (num_data, *shape) to (num_data, *out).
    """
    zero = torch.zeros(num_data, *shape, dtype=torch.float64)
    full = torch.autograd.functional.jacobian(decode, zero).reshape(
        num_data, -1, num_data, zero[0].numel()
    )
    A = torch.stack([full[i, :, i] for i in range(num_data)])
    assert torch.allclose(full.abs().sum(), A.abs().sum()), (
        "a datum's mean must depend on its own latent only"
    )
    b = decode(zero).reshape(num_data, -1)
    x = torch.randn(num_data, *out, dtype=torch.float64)
    exact, evidence = _posterior(A, b, x.reshape(num_data, -1), noise)
    exact = (
        dist.TransformedDistribution(
            exact, [ReshapeTransform((zero[0].numel(),), shape)]
        )
        if shape
        else exact
    )

    def model(x: Tensor, still: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zero[0], 1.0).to_event(len(shape)))
            pyro.sample(
                "x", dist.Normal(decode(z) + still, noise).to_event(len(out)), obs=x
            )

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z",
                exact
                if shape
                else dist.Normal(exact.mean[:, 0], exact.variance[:, 0].sqrt()),
            )

    return Exact(pair(model, guide), x, evidence, (num_data, *shape, *out))


def shared_gaussian(
    decode: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    out: tuple[int, ...] = (),
    num_data: int = 7,
    noise: float = 0.7,
) -> Exact:
    """A shared latent of `shape`, linear means; ``decode`` maps `shape` to (num_data, *out)."""
    zero = torch.zeros(*shape, dtype=torch.float64)
    A = torch.autograd.functional.jacobian(decode, zero).reshape(-1, zero.numel())
    x = torch.randn(num_data, *out, dtype=torch.float64)
    exact, evidence = _posterior(A, decode(zero).reshape(-1), x.reshape(-1), noise)
    exact = dist.TransformedDistribution(
        exact, [ReshapeTransform((zero.numel(),), shape)]
    )

    def model(x: Tensor, still: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(len(shape)))
        mean = decode(z)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean + still, noise).to_event(len(out)), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", exact)

    return Exact(pair(model, guide), x, evidence, (num_data, *shape, *out))


def discrete(
    decode: Callable[[Tensor], Tensor],
    width: int = 4,
    out: int = 4,
    num_data: int = 7,
    codes: int = 3,
    reference: Callable[[Tensor], Tensor] | None = None,
    rows: int | None = None,
) -> Exact:
    """A local latent that is one of `codes` vectors, with any function of it as mean.

    ``decode`` maps (num_data, width) to (num_data, out).


    The posterior is found by enumeration with `reference`, which treats one row at a time; it is
    `decode` of that row if not given. With `rows` given, the vectors are shared by the data:
    `rows` of them in a plate "topics", of which datum i reads that of number i modulo `rows`.
    """
    count = num_data if rows is None else rows
    table = torch.randn(codes, width, dtype=torch.float64)
    with torch.no_grad():
        row = reference or (lambda v: decode(v.expand(count, width))[0])
        means = torch.stack([row(v) for v in table])  # (codes, out)
    x = torch.randn(num_data, out, dtype=torch.float64)
    topic = torch.arange(num_data) % count
    each = dist.Normal(means, 1.0).log_prob(x.unsqueeze(1)).sum(-1)  # (num_data, codes)
    joint = (
        torch.zeros(count, codes, dtype=torch.float64).index_add(0, topic, each)
        - torch.tensor(codes).double().log()
    )
    evidence = joint.logsumexp(-1)
    prior = torch.ones(codes, dtype=torch.float64) / codes

    def model(x: Tensor, still: Tensor) -> None:
        if rows is None:
            with pyro.plate("data", len(x)):
                c = pyro.sample("c", dist.Categorical(prior))
                pyro.sample(
                    "x", dist.Normal(decode(table[c]) + still, 1.0).to_event(1), obs=x
                )
        else:
            with pyro.plate("topics", rows):
                c = pyro.sample("c", dist.Categorical(prior))
            mean = decode(table[c])[topic]
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(mean + still, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data" if rows is None else "topics", count):
            pyro.sample("c", dist.Categorical(logits=joint))

    return Exact(
        pair(model, guide),
        x,
        evidence if rows is None else evidence.sum(),
        (num_data, count, width, out, codes),
    )
