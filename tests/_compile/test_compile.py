"""Splitting sums from matrix products keeps the results; guards detect changed Python state."""

import time

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from vilvm._compile import MOST_PROGRAMS, Guards, UntraceableError, graph, program
from vilvm._compile.products import ProductsAlone


def taken_apart(function, *given):
    module = make_fx(function, tracing_mode="fake")(*given)
    ProductsAlone()(module.graph)
    module.graph.lint()
    module.recompile()
    left = [
        node.target
        for node in module.graph.nodes
        if node.target == torch.ops.aten.addmm.default
    ]
    return module(*given), len(left)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (4, 1), (4, 3)])
def test_bias_is_added_after_the_product(shape):
    bias, x, w = torch.randn(shape), torch.randn(4, 5), torch.randn(5, 3)
    found, left = taken_apart(torch.addmm, bias, x, w)
    assert left == 0
    torch.testing.assert_close(found, torch.addmm(bias, x, w))


def test_product_with_factors_is_not_split():
    given = torch.randn(3), torch.randn(4, 5), torch.randn(5, 3)
    found, left = taken_apart(lambda b, x, w: torch.addmm(b, x, w, beta=0.5), *given)
    assert left == 1
    torch.testing.assert_close(found, torch.addmm(*given, beta=0.5))


def test_half_precision_product_is_not_rounded_before_bias():
    given = [
        t.bfloat16() for t in (torch.randn(3), torch.randn(4, 5), torch.randn(5, 3))
    ]
    found, left = taken_apart(torch.addmm, *given)
    assert left == 1
    assert torch.equal(found, torch.addmm(*given))


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.calls = 2.0, 0

    def forward(self, x):
        return self.scale * x


def test_changed_python_state_makes_a_new_program():
    made, net, x = [], Scaled(), torch.arange(3.0)

    def compiler(function, inputs):
        made.append(inputs)
        return graph(function, inputs)

    run = program(lambda x: [net(x)], [x], compiler, [net])
    for scale in (2.0, 3.0, 2.0, 3.0, -1.0):
        net.scale = scale
        torch.testing.assert_close(run(x)[0], scale * x)
    assert len(made) == 3
    net.calls = 5  # no code reads it
    run(x)
    assert len(made) == 3
    for scale in range(20):  # too many changes, so the function runs eagerly
        net.scale = float(scale)
        torch.testing.assert_close(run(x)[0], scale * x)
    assert len(made) <= MOST_PROGRAMS


def test_function_that_changes_its_own_state_is_refused():
    class Counts(Scaled):
        def forward(self, x):
            self.calls += 1
            return self.calls * x

    net = Counts()
    with pytest.raises(
        UntraceableError, match=r"net\.calls changes whenever the pair is run"
    ):
        program(lambda x: [net(x)], [torch.ones(2)], graph)


def test_comparing_guards_takes_microseconds():
    net = torch.nn.Sequential(
        *(
            torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
            for _ in range(20)
        )
    )
    guards = Guards.of([net])
    began = time.process_time()
    for _ in range(1000):
        assert guards.changed() is None
    assert (
        time.process_time() - began < 0.5
    )  # 500 µs each, and a block of steps takes 100,000
    net[3][1].p = 0.25
    place = guards.changed()
    assert place is not None
    assert place.name == "Sequential.3.1.p"
    assert guards.what() == "Sequential.3.1.p changed from 0.5 to 0.25"
