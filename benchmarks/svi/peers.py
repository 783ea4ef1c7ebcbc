# pyright: reportMissingImports=false
"""The same workloads in NumPyro, from the same initial parameters: one jitted update a step, and
many steps in one ``lax.scan``.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from benchmarks.svi.workloads import Workload
from vilvm.networks import ConvEncoder

__all__ = ["contenders"]


def contenders(
    workload: Workload, data: Any, batch: int | None, pair: Any
) -> dict[str, Callable[[], Callable[[int], list[float]]]]:
    """Functions that make the steps, by name.

    Raises:
        ModuleNotFoundError: NumPyro is not installed.
    """
    import jax
    import numpyro

    numpyro.enable_validation(False)
    x = jax.tree.map(
        lambda t: jax.numpy.asarray(t.numpy()),
        data,
        is_leaf=lambda t: isinstance(t, Tensor),
    )
    svi = _svi(workload, pair)

    def start(key: Any) -> Any:
        return svi.init(key, x if batch is None else x[:batch])

    def step(state: Any, key: Any) -> Any:
        picked = x if batch is None else x[jax.random.randint(key, (batch,), 0, len(x))]
        return svi.update(state, picked)

    def one_by_one() -> Callable[[int], list[float]]:
        state, key, update = start(jax.random.key(0)), jax.random.key(1), jax.jit(step)

        def steps(count: int) -> list[float]:
            nonlocal state, key
            losses = []
            # that pick the batches
            key, *keys = (
                [key] * (count + 1)
                if batch is None
                else jax.random.split(key, count + 1)
            )
            for k in keys:
                state, loss = update(state, k)
                losses.append(loss)
            return [float(loss) / (batch or 1) for loss in jax.device_get(losses)]

        return steps

    def scan() -> Callable[[int], list[float]]:
        state, key = start(jax.random.key(0)), jax.random.key(1)
        run = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys))

        def steps(count: int) -> list[float]:
            nonlocal state, key
            key, own = jax.random.split(key)
            state, losses = run(state, jax.random.split(own, count))
            return [float(loss) / (batch or 1) for loss in jax.device_get(losses)]

        return steps

    return {
        "NumPyro, jitted update a step": one_by_one,
        "NumPyro, lax.scan over the steps": scan,
    }


def bound(workload: Workload, pair: Any, samples: int) -> Callable[[Any], float]:
    """NumPyro's importance-weighted bound of a batch, jitted, with a torch pair's parameters."""
    import jax
    import jax.numpy as jnp
    from numpyro.infer import RenyiELBO

    svi = _svi(workload, pair)
    elbo = RenyiELBO(alpha=0, num_particles=samples)

    @jax.jit
    def loss(key: Any, parameters: Any, batch: Any) -> Any:
        return elbo.loss(key, parameters, svi.model, svi.guide, batch)

    known: dict[str, Any] = {}
    key = [jax.random.PRNGKey(0)]

    def estimate(x: Any) -> float:
        batch = jnp.asarray(x.numpy())
        if not known:
            known.update(svi.get_params(svi.init(key[0], batch)))
        key[0], own = jax.random.split(key[0])
        return -float(loss(own, known, batch))

    return estimate


def _schools_svi() -> Any:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal
    from numpyro.infer.initialization import init_to_value

    def schools(batch: Any) -> None:
        y, sigma = batch
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        with numpyro.plate("schools", len(y)):
            eta = numpyro.sample("eta", dist.Normal(0, 1))
            numpyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)

    start = init_to_value(values={"mu": 0.0, "tau": 1.0, "eta": jnp.zeros(8)})
    guide = AutoNormal(schools, init_loc_fn=start)
    return SVI(schools, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())


def _svi(workload: Workload, pair: Any) -> Any:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, Trace_ELBO

    if workload.name == "eight_schools":
        return _schools_svi()

    def gaussian(out: Any) -> Any:
        mean, log_variance = jnp.split(out, 2, -1)
        return dist.Normal(
            mean, jnp.exp(0.5 * jnp.clip(log_variance, -14, 14))
        ).to_event(1)

    adam = numpyro.optim.Adam(1e-3)
    nets = {name: _network(name, module) for name, module in pair.named_children()}

    def layer(name: str, x: Any) -> Any:
        parameters, apply = nets[name]
        return apply(
            [numpyro.param(f"{name}.{i}", p) for i, p in enumerate(parameters)], x
        )

    def bits(logits: Any) -> Any:
        return dist.Bernoulli(logits=logits).to_event(1)

    def unit(size: int) -> Any:
        return dist.Normal(jnp.zeros(size), 1).to_event(1)

    def model(x: Any) -> None:
        with numpyro.plate("data", len(x)):
            if workload.name == "hierarchical":
                z = numpyro.sample(
                    "z1",
                    gaussian(
                        layer("lower", numpyro.sample("z2", unit(pair.latents[1])))
                    ),
                )
            else:
                z = numpyro.sample("z", unit(pair.latent))
            numpyro.sample("x", bits(layer("decoder", z)), obs=x)

    def guide(x: Any) -> None:
        with numpyro.plate("data", len(x)):
            if workload.name == "hierarchical":
                z1 = numpyro.sample("z1", gaussian(layer("encoder", x)))
                numpyro.sample("z2", gaussian(layer("upper", z1)))
            else:
                numpyro.sample("z", gaussian(layer("encoder", x)))

    return SVI(model, guide, adam, Trace_ELBO())


def _network(
    name: str, module: nn.Module
) -> tuple[list[Any], Callable[[list[Any], Any], Any]]:
    """The parameters of a torch network as arrays, and the network as a function of these."""
    import jax
    import jax.numpy as jnp

    layers = [m for m in module.modules() if not list(m.children())]
    parameters = [
        jnp.asarray(p.detach().contiguous().numpy())
        for m in layers
        for p in m.parameters()
    ]
    side, numbers = (
        ("NCHW", "OIHW", "NCHW"),
        [len(list(m.parameters())) for m in layers],
    )

    def apply(given: list[Any], x: Any) -> Any:
        rest = list(given)
        if isinstance(module, ConvEncoder):
            x = x.reshape(-1, *module.shape)
        for m, count in zip(layers, numbers, strict=True):
            own, rest = rest[:count], rest[count:]
            if isinstance(m, nn.Linear):
                x = x @ own[0].T + own[1]
            elif isinstance(m, nn.SiLU):
                x = jax.nn.silu(x)
            elif isinstance(m, nn.Conv2d):
                x = (
                    jax.lax.conv_general_dilated(
                        x, own[0], (2, 2), [(1, 1)] * 2, dimension_numbers=side
                    )
                    + own[1][:, None, None]
                )
            elif isinstance(m, nn.ConvTranspose2d):
                kernel = jnp.flip(own[0], (2, 3)).swapaxes(0, 1)
                x = (
                    jax.lax.conv_general_dilated(
                        x, kernel, (1, 1), [(2, 2)] * 2, (2, 2), dimension_numbers=side
                    )
                    + own[1][:, None, None]
                )
            elif isinstance(m, nn.Unflatten):
                x = x.reshape(-1, *m.unflattened_size)
            elif isinstance(m, nn.Flatten):
                x = x.reshape(len(x), -1)
            else:
                raise TypeError(f"{name}: no {type(m).__name__} here")
        return x.reshape(len(x), -1)

    return parameters, apply
