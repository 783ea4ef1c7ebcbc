"""The pass that takes sums out of matrix products leaves what they come to."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from vilvm.compiling.products import ProductsAlone


def taken_apart(function, *given):
    module = make_fx(function, tracing_mode="fake")(*given)
    ProductsAlone()(module.graph)
    module.graph.lint()
    module.recompile()
    left = [node.target for node in module.graph.nodes if node.target == torch.ops.aten.addmm.default]
    return module(*given), len(left)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (4, 1), (4, 3)])
def test_a_bias_is_added_behind_the_product(shape):
    bias, x, w = torch.randn(shape), torch.randn(4, 5), torch.randn(5, 3)
    found, left = taken_apart(torch.addmm, bias, x, w)
    assert left == 0
    torch.testing.assert_close(found, torch.addmm(bias, x, w))


def test_multiples_stay_as_they_are():
    given = torch.randn(3), torch.randn(4, 5), torch.randn(5, 3)
    found, left = taken_apart(lambda b, x, w: torch.addmm(b, x, w, beta=0.5), *given)
    assert left == 1
    torch.testing.assert_close(found, torch.addmm(*given, beta=0.5))


def test_a_product_in_half_precision_is_not_rounded_before_its_bias():
    given = [t.bfloat16() for t in (torch.randn(3), torch.randn(4, 5), torch.randn(5, 3))]
    found, left = taken_apart(torch.addmm, *given)
    assert left == 1
    assert torch.equal(found, torch.addmm(*given))
