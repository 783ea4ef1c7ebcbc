"""Networks in bfloat16, densities in float32."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

import vilvm
from vilvm._compile import graph
from vilvm._runtime.precision import networks_in
from vilvm._runtime.random import seeded
from vilvm.lvm import module_parameters
from vilvm.models import conv_autoencoder
from vilvm.models.vae import VAE
from vilvm.training.compiled_step import CompiledStep
from vilvm.training.step import EagerStep


def pair():
    with seeded(0):
        return VAE(12, 3, encoder_hidden=(32,), decoder_hidden=(32,)), torch.bernoulli(
            torch.full((64, 12), 0.4)
        )


def gradients(lvm, x, precision):
    with seeded(1), networks_in(precision, lvm), module_parameters(lvm):
        lvm.zero_grad()
        Trace_ELBO().differentiable_loss(lvm.model, lvm.guide, x).backward()
    return [p.grad.clone() for p in lvm.parameters()]


@pytest.mark.parametrize(
    "make", [pair, conv_autoencoder.tiny], ids=["linear", "convolutional"]
)
def test_gradients_match_float32_to_eight_bits(make):
    lvm, x = make()
    exact, low = gradients(lvm, x, "float32"), gradients(lvm, x, "bf16")
    total = torch.stack([g.norm() for g in exact]).norm()
    apart = (
        torch.stack([(a - b).norm() for a, b in zip(exact, low, strict=True)]).norm()
        / total
    )
    assert 1e-5 < apart < 3e-2
    assert all(g.dtype == torch.float32 for g in low)


def test_no_density_sees_bfloat16():
    seen = []

    class Watching(VAE):
        def decode(self, z):
            out = self.decoder(z)
            seen.append((z.dtype, out.dtype))
            return dist.Bernoulli(logits=out).to_event(1)

    lvm = Watching(6, 2)
    vilvm.fit(lvm, torch.bernoulli(torch.full((20, 6), 0.5)), steps=3, precision="bf16")
    assert set(seen) == {(torch.float32, torch.float32)}
    assert all(p.dtype == torch.float32 for p in lvm.parameters())
    assert all("forward" not in m.__dict__ for m in lvm.modules())


def test_compiled_step_equals_eager_in_bfloat16():
    ends = []
    for make in (EagerStep, CompiledStep):
        lvm, x = pair()
        own = {"compiler": graph} if make is CompiledStep else {}
        step = make(
            lvm, Trace_ELBO(), torch.optim.Adam(lvm.parameters(), lr=1e-2), **own
        )
        with (
            seeded(1),
            module_parameters(lvm),
            networks_in("bf16", lvm),
            pyro.validation_enabled(False),
        ):
            losses = [step(x, 64.0).loss for _ in range(5)]
        ends.append((losses, lvm.state_dict()))
    assert step.refused is None
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-4)


def test_a_run_is_resumed_in_its_own_precision(tmp_path):
    lvm, x = pair()
    fresh = copy.deepcopy(lvm)
    options = {"batch_size": 16, "run_dir": tmp_path, "resume": True}
    vilvm.fit(lvm, x, steps=10, precision="bf16", **options)
    with pytest.raises(
        vilvm.CheckpointError, match="precision = bf16, this run has float32"
    ):
        vilvm.fit(copy.deepcopy(fresh), x, steps=20, **options)
    vilvm.fit(lvm, x, steps=20, precision="bf16", **options)
    whole = copy.deepcopy(fresh)
    vilvm.fit(whole, x, steps=20, precision="bf16", batch_size=16)
    assert all(
        torch.equal(v, lvm.state_dict()[n]) for n, v in whole.state_dict().items()
    )


def test_bound_changes_little_and_protocol_records_it():
    lvm, x = pair()
    exact = vilvm.evaluate(lvm, x, num_samples=50)
    low = vilvm.evaluate(lvm, x, num_samples=50, precision="bf16")
    assert 0 < abs(exact.bounds["elbo"].mean - low.bounds["elbo"].mean) < 0.05
    assert low.protocol["precision"] == "bf16"
    assert "precision" not in exact.protocol


def test_model_without_network_is_refused():
    class Mean(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.m = torch.nn.Parameter(torch.tensor(0.0))

        def model(self, x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x):
            pyro.sample("z", dist.Normal(self.m, 1.0))

    with pytest.raises(ValueError, match="Mean has no linear or convolutional layer"):
        vilvm.fit(Mean(), torch.zeros(3), steps=1, precision="bf16")
    with pytest.raises(ValueError, match="unknown precision='half'"):
        vilvm.evaluate(Mean(), torch.zeros(3), precision="half")


def test_innermost_context_applies_and_copies_are_independent():
    lvm, x = pair()
    exact = vilvm.evaluate(lvm, x, num_samples=3).bounds["elbo"].values
    elbos, copies = [], []

    def look(event):
        elbos.append(vilvm.evaluate(event.lvm, x, num_samples=3).bounds["elbo"].values)
        copies.append(copy.deepcopy(event.lvm))
        with torch.no_grad():
            for p in copies[-1].parameters():
                p.zero_()
            assert not copies[-1].decoder(torch.ones(1, 3)).any()
        with networks_in("bf16", event.lvm), networks_in("float32", event.lvm):
            assert torch.equal(event.lvm.encoder(x), float32(x))

    frozen = torch.optim.SGD(lvm.parameters(), lr=0.0)
    float32 = copy.deepcopy(lvm.encoder)
    vilvm.fit(lvm, x, steps=50, precision="bf16", optimizer=frozen, callbacks=[look])
    assert torch.equal(elbos[0], exact)
    weights = copies[-1].decoder[0].weight
    with torch.no_grad():
        weights.fill_(1 / 3)  # not representable with eight bits
        assert (
            copies[-1].decoder[0](torch.ones(1, 3))[0, 0]
            == torch.nn.functional.linear(torch.ones(1, 3), weights)[0, 0]
        )


def test_sampled_weights_do_not_change():
    layer = pyro.nn.PyroModule[torch.nn.Linear](3, 2)
    layer.weight = pyro.nn.PyroSample(dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    outer = torch.nn.Sequential(layer, torch.nn.Linear(2, 2))
    with networks_in("bf16", outer):
        assert "forward" not in layer.__dict__
        assert "forward" in outer[1].__dict__


@pytest.mark.slow
def test_inductors_bf16_result_is_accepted(capsys):
    torch.manual_seed(0)
    lvm, x = (
        VAE(data_dim=200, latent_dim=8),
        torch.bernoulli(torch.full((64, 200), 0.5)),
    )
    vilvm.fit(lvm, x, steps=20, batch_size=32, compile=True, precision="bf16")
    vilvm.evaluate(
        lvm, x[:20], num_samples=400, chunk=100, compile=True, precision="bf16"
    )
    assert "not compiled" not in capsys.readouterr().out
