"""Hard cases of compiled training: skipped steps, programs that fail, untraceable constructs, and
losses near zero.
"""

import re
import time
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import Spline, conditional_spline
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample

import vilvm
from vilvm._compile import UntraceableError, graph, mutated_inputs, trace
from vilvm._runtime.random import seeded
from vilvm.lvm import module_parameters
from vilvm.objectives import Annealed
from vilvm.training.compiled_step import CompiledStep


@pytest.fixture(autouse=True)
def _as_graph(monkeypatch):
    monkeypatch.setattr("vilvm.training.compiled_step.machine_code", graph)


class Statistics(torch.nn.Module):
    """Two batch normalisations, one in a nested module, and a loss that is infinite for batches
    with a datum below −3.
    """

    def __init__(self):
        super().__init__()
        with seeded(0):
            # Without biases that the second one removes: their gradients would be rounding.
            inner = torch.nn.Sequential(
                torch.nn.Linear(2, 4, bias=False),
                torch.nn.BatchNorm1d(4, momentum=0.3),
                torch.nn.Tanh(),
            )
            self.net = torch.nn.Sequential(
                torch.nn.BatchNorm1d(2, affine=False), inner, torch.nn.Linear(4, 2)
            )

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        scale = torch.where((x < -3).any(-1, keepdim=True), torch.inf, 0.7)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x), scale).to_event(1))


def rare(count=100, every=20):
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(0)).clamp(-2.9, 3)
    x[::every] = -4.0
    return x


@pytest.mark.parametrize(
    ("optimizer", "every", "size", "steps"),
    [
        (torch.optim.Adam, 3, 2, 60),
        pytest.param(torch.optim.Adam, 8, 8, 40, marks=pytest.mark.slow),
        pytest.param(torch.optim.SGD, 20, 10, 40, marks=pytest.mark.slow),
    ],
    ids=[
        "several in a row, of two data, whose mean is zero at the trace",
        "several in a row",
        "behind the graph",
    ],
)
def test_skipped_step_changes_no_batch_statistics(
    optimizer, every, size, steps, *, tmp_path, monkeypatch
):
    """The number of steps launched at once, which depends on the clock, has no effect."""

    def trained(name, steps, compile, seconds, **options):
        monkeypatch.setattr("vilvm.training._loop._SECONDS_AT_ONCE", seconds)
        lvm = Statistics()
        make = partial(optimizer, lr=1e-3)
        options = {
            "nonfinite": "skip",
            "progress": False,
            "optimizer": make,
            "run_dir": tmp_path / name,
            **options,
        }
        done = vilvm.fit(
            lvm,
            rare(every=every),
            steps=steps,
            batch_size=size,
            compile=compile,
            **options,
        )
        return done, lvm.state_dict()

    eager, expected = trained("eager", steps, False, 0.0)
    done, whole = trained("whole", steps, True, 1e9)
    trained("parts", steps - 6, True, 0.0)
    _, parts = trained("parts", steps, True, 0.0, resume=True)
    assert done.skipped == eager.skipped > 10
    counted = [n for n in whole if n.endswith("num_batches_tracked")]
    assert len(counted) == 2
    for name, value in whole.items():
        assert torch.equal(value, parts[name])
        torch.testing.assert_close(
            value, expected[name], rtol=1e-4, atol=1e-6 if "running" in name else 1e-5
        )
    assert all(whole[n] == steps - done.skipped for n in counted)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (5e-8, None),
        (1e-3, "a buffer, such as batch statistics, is not that of the eager step"),
    ],
)
def test_rounding_of_zero_batch_statistics_is_no_difference(error, words):
    """The mean of centred data is rounding, and a program sums in another order."""

    def compiler(function, inputs):
        def program(*given):
            result = graph(function, inputs)(*given)
            means = [
                t
                for t in given
                if t.shape == (4,)
                and not t.requires_grad
                and 0 < float(t.abs().max()) < 1e-5
            ]
            assert means
            means[0].add_(error)
            return result

        return program

    lvm, x = Statistics(), rare()[1:20]
    with seeded(0), module_parameters(lvm):
        step = CompiledStep(
            lvm,
            Trace_ELBO(),
            torch.optim.SGD(lvm.parameters(), lr=1e-3),
            compiler=compiler,
        )
        assert step.differs(x, 19.0) == words


class Kinked(torch.nn.Module):
    """A ReLU network with a unit that is at its kink for the first datum, up to rounding."""

    def __init__(self, x):
        super().__init__()
        with seeded(1):
            self.hidden, self.out = torch.nn.Linear(2, 4), torch.nn.Linear(4, 2)
        with torch.no_grad():
            self.hidden.bias[0] -= self.hidden(x[0])[0] + 1e-8

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        loc = self.out(self.hidden(x).relu())
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("error", "differs"), [(1e-7, False), (1e-3, True)])
def test_kink_within_rounding_is_no_difference(error, differs, seed):
    """A program rounds the argument of a ReLU to the other side of zero."""

    def compiler(function, inputs):
        def program(*given):
            bias = next(t for t in given if t.shape == (4,))
            bias[0] += error
            return graph(function, inputs)(*given)

        return program

    x = rare()[1:20]
    lvm = Kinked(x)
    with seeded(seed), module_parameters(lvm):
        step = CompiledStep(
            lvm,
            Trace_ELBO(),
            torch.optim.SGD(lvm.parameters(), lr=1e-3),
            compiler=compiler,
        )
        assert (step.differs(x, 19.0) is not None) == differs


def test_written_inputs_are_found_when_values_stay():
    norm = torch.nn.BatchNorm1d(1, momentum=0.3)
    made = trace(lambda x: [norm(x)], [torch.tensor([[-1.0], [1.0]])])  # of mean zero
    assert {id(t) for t in mutated_inputs(made)} == {id(b) for b in norm.buffers()}


class Spread(torch.nn.Module):
    def __init__(self):
        super().__init__()
        with seeded(0):
            self.net = torch.nn.Linear(2, 2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x), 0.7).to_event(1))


def failing(launches, partly=False):
    """A compiler whose programs fail at one launch, before or after they moved a parameter."""
    count = [0]

    def compiler(function, inputs):
        run = graph(function, inputs)

        def program(*given):
            count[0] += 1
            if count[0] == launches:
                if partly:
                    given[-6].add_(1.0)
                raise RuntimeError("aoti_torch_index_put_out(buf33) API call failed")
            return run(*given)

        return program

    return compiler


@pytest.mark.parametrize(
    ("launches", "partly", "callbacks"),
    [
        (3, False, []),
        (20, True, []),
        (77, False, [lambda event: None]),
        pytest.param(3, True, [lambda event: None], marks=pytest.mark.slow),
        pytest.param(20, False, [lambda event: None], marks=pytest.mark.slow),
        pytest.param(77, True, [], marks=pytest.mark.slow),
    ],
)
def test_failing_program_leaves_the_eager_run(
    monkeypatch, capsys, launches, partly, callbacks
):
    ends = []
    for compile in (False, True):
        monkeypatch.setattr(
            "vilvm.training.compiled_step.machine_code", failing(launches, partly)
        )
        lvm = Spread()
        scheduler = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.99)
        objective = Annealed(Trace_ELBO(), warmup=50)
        x = torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
        done = vilvm.fit(
            lvm,
            x,
            steps=120,
            batch_size=20,
            compile=compile,
            scheduler=scheduler,
            objective=objective,
            callbacks=callbacks,
            progress=False,
        )
        ends.append(
            (
                lvm.state_dict(),
                done.history["elbo"].tolist(),
                done.history["step"].tolist(),
                objective.step,
            )
        )
    for name, value in ends[0][0].items():
        torch.testing.assert_close(ends[1][0][name], value, rtol=1e-4, atol=1e-5)
    assert ends[1][1] == pytest.approx(ends[0][1], rel=1e-4)
    assert ends[1][2:] == ends[0][2:]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert re.search(r"runs eagerly: .*aoti_torch_index_put_out.*", lines[0])


class Splined(Spread):
    def __init__(self, conditional=False):
        super().__init__()
        with seeded(0):
            self.conditional = conditional
            self.spline = (
                conditional_spline(2, 2, hidden_dims=[4], count_bins=4)
                if conditional
                else Spline(2, count_bins=4)
            )

    def guide(self, x):
        base = dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            if self.conditional:
                pyro.sample(
                    "z",
                    dist.ConditionalTransformedDistribution(
                        base, [self.spline]
                    ).condition(x),
                )
            else:
                pyro.sample("z", dist.TransformedDistribution(base, [self.spline]))


@pytest.mark.parametrize(
    "conditional", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_spline_guide_is_not_compiled_and_trains(conditional, capsys):
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(1))
    ends = []
    for compile in (False, True):
        lvm = Splined(conditional)
        done = vilvm.fit(lvm, x, steps=10, compile=compile, progress=False)
        ends.append(done.history["elbo"].tolist())
    assert ends[0] == ends[1]
    assert capsys.readouterr().out.count("a selection by a mask or a value") == 1


FIXED = torch.tensor([True, False, True])


@pytest.mark.parametrize(
    ("function", "is_fine"),
    [
        (lambda x: [x[x > 0].sum()], False),
        (lambda x: [x[x > 0].mean()], False),
        (lambda x: [x.nonzero().float().mean()], False),
        (lambda x: [torch.masked_select(x, x > 0).mean()], False),
        (lambda x: [x.unique().sum() / len(x.unique())], False),
        (lambda x: [x[FIXED].mean()], True),
        (lambda x: [x[torch.tensor([0, 2])].mean()], True),
        (lambda x: [x.index_put((x > 0,), torch.tensor(5.0)).mean()], True),
        (lambda x: [torch.where(x > 0, x, 0.0).mean()], True),
        (lambda x: [x.index_select(0, x.argmax())], True),
    ],
)
def test_selection_of_variable_size_is_refused(function, is_fine):
    x, other = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([-1.0, 4.0, 5.0])
    if not is_fine:
        with pytest.raises(UntraceableError, match="a selection by a mask or a value"):
            trace(function, [x])
        return
    made = trace(function, [x])
    for given in (x, other):
        torch.testing.assert_close(
            list(made.module(given, *made.closed)), function(given)
        )


def in_turn(size=None):
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", len(x), subsample_size=size):
            pyro.sample(f"x_{i}", dist.Normal(mu, 1.0), obs=x[i])

    def guide(x):
        pyro.sample("mu", dist.Normal(pyro.param("m", torch.tensor(0.1)), 0.5))

    return vilvm.Pair(model, guide), torch.arange(4.0)


def beforehand():
    """A model as in the PyroSample tutorials, with shapes for several samples."""
    made = dist.Normal(0.0, 1.0).expand([3]).to_event(1)

    def model(batch):
        x, y = batch
        w = pyro.sample("w", made)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((w.unsqueeze(-2) * x).sum(-1), 1.0), obs=y)

    return vilvm.Pair(model, AutoNormal(model)), (torch.randn(8, 3), torch.randn(8))


class Bayesian(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[torch.nn.Linear](3, 1)
        self.linear.weight = PyroSample(
            dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2)
        )
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, batch):
        x, y = batch
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def tutorial():
    model = Bayesian()
    return vilvm.Pair(model, AutoNormal(model)), (torch.randn(8, 3), torch.randn(8))


def uniform():
    """A model with a support that Pyro would check."""
    made = dist.Uniform(-1.0, 2.0).expand([2]).to_event(1)

    def model(x):
        w = pyro.sample("w", made)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)

    return vilvm.Pair(model, AutoNormal(model)), torch.randn(8, 2)


@pytest.mark.parametrize(
    "make",
    [
        in_turn,
        beforehand,
        *(pytest.param(make, marks=pytest.mark.slow) for make in (tutorial, uniform)),
    ],
)
def test_sequential_plates_and_premade_distributions_compile(make):
    lvm, batch = make()
    with module_parameters(lvm):
        lvm.guide(batch), lvm.model(batch)
        lines = []
        step = CompiledStep(
            lvm,
            Trace_ELBO(),
            torch.optim.Adam(lvm.parameters()),
            compiler=graph,
            log=lines.append,
        )
        began = time.process_time()
        assert step.prepare(batch, 1.0) is not None, lines
        assert time.process_time() - began < 10
        assert step.differs(batch, 1.0, 1e-5) is None


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (lambda x: x.sum().item().__format__(".2f"), "reads the value of a tensor"),
        (lambda x: f"{x.sum().item()}", "reads the value of a tensor"),
        (lambda x: str(x.sum().item()), "reads the value of a tensor"),
    ],
    ids=["format", "f-string", "str"],
)
def test_printed_value_is_refused_at_the_users_line(weight, words):
    def model(x):
        return [x * len(weight(x))]

    with pytest.raises(UntraceableError, match=rf"{words}.*test_compiled_trouble.py"):
        trace(model, [torch.randn(3)])


def test_sequential_plate_over_drawn_subsample_is_refused():
    lvm, batch = in_turn(2)
    with module_parameters(lvm):
        lvm.guide(batch)
        lines = []
        step = CompiledStep(
            lvm,
            Trace_ELBO(),
            torch.optim.Adam(lvm.parameters()),
            compiler=graph,
            log=lines.append,
        )
        began = time.process_time()
        assert step.prepare(batch, 1.0) is None
        assert time.process_time() - began < 10
    assert len(lines) == 1
    assert "the plate 'data' goes one by one through indices that are drawn" in lines[0]
    assert "test_compiled_trouble.py" in lines[0]


class AtZero(torch.nn.Module):
    """A loss whose terms add up to `to`, with a gradient that cancels at m = mean(x)."""

    def __init__(self, x, to=0.0):
        super().__init__()
        self.m = torch.nn.Parameter(x.mean())
        with torch.no_grad():
            self.shift = 0.0
            self.shift = Trace_ELBO().loss(self.model, self.guide, x) / len(x) - to

    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.m, 1.0), obs=x)
            pyro.factor("shift", x.new_full((len(x),), self.shift))
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(self, x):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def wrong(by):
    """A compiler whose programs add to the loss and the gradient of m."""

    def compiler(function, inputs):
        run = graph(function, inputs)

        def program(*given):
            loss, *grads = run(*given)
            return [loss + by[0], *(g + by[1] for g in grads)]

        return program

    return compiler


@pytest.mark.parametrize(
    "to",
    [0.0, -1e-5, *(pytest.param(to, marks=pytest.mark.slow) for to in (1e-7, 1e-3))],
)
@pytest.mark.parametrize(
    ("by", "reason"),
    [
        ((0.0, 0.0), None),
        ((1e-7, 1e-8), None),
        ((1e-3, 0.0), "its loss"),
        ((0.0, 1e-3), "its gradient of 'm'"),
    ],
    ids=["right", "rounding", "loss", "gradient"],
)
def test_loss_near_zero_is_compared_by_its_terms(to, by, reason):
    with seeded(0):
        x = 5 * torch.randn(1000)
        lvm = AtZero(x, to)
    with module_parameters(lvm), seeded(1):
        optimizer = torch.optim.SGD(lvm.parameters(), lr=0.1)
        step = CompiledStep(
            lvm, Trace_ELBO(), optimizer, compiler=wrong(by), log=lambda _: None
        )
        step.prepare(x, 1000.0)
    assert step.refused is None if reason is None else re.match(reason, step.refused)


def mixture():
    def model(x):
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            k = pyro.sample(
                "k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"}
            )
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    return vilvm.Pair(model, lambda x: None), torch.linspace(-2, 2, 6)


def line():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Normal(pyro.param("locs", torch.tensor(0.1)) * x, 0.7)
            )

    return vilvm.Pair(model, guide), torch.linspace(-2, 2, 6)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("make", "objective", "known"),
    [
        (mixture, TraceEnum_ELBO, partial(TraceEnum_ELBO, max_plate_nesting=1)),
        *(
            (
                line,
                partial(kind, num_particles=3, vectorize_particles=True),
                partial(
                    kind, num_particles=3, vectorize_particles=True, max_plate_nesting=1
                ),
            )
            for kind in (
                Trace_ELBO,
                partial(TraceEnum_ELBO, strict_enumeration_warning=False),
                RenyiELBO,
            )
        ),
        (
            line,
            lambda: Annealed(
                Trace_ELBO(num_particles=3, vectorize_particles=True), warmup=5
            ),
            lambda: Annealed(
                Trace_ELBO(
                    num_particles=3, vectorize_particles=True, max_plate_nesting=1
                ),
                warmup=5,
            ),
        ),
    ],
    ids=["enumerated", "particles", "enum particles", "IWAE", "annealed"],
)
def test_objective_receives_its_plate_nesting(make, objective, known, compile, capsys):
    ends = []
    for given in (objective(), known()):
        lvm, x = make()
        vilvm.fit(lvm, x, steps=5, objective=given, compile=compile, progress=False)
        ends.append([p.detach().clone() for p in lvm.parameters()])
        assert not pyro.get_param_store().keys()
    assert all(torch.equal(p, q) for p, q in zip(*ends, strict=True))
    assert "eagerly" not in capsys.readouterr().out


def test_one_objective_serves_pairs_of_different_nesting():
    objective = TraceEnum_ELBO()
    for _ in range(2):
        lvm, x = mixture()
        vilvm.fit(lvm, x, steps=2, objective=objective, progress=False)
        assert objective.max_plate_nesting == float("inf")
