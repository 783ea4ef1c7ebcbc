"""Native programs equal torch's own operations, or are refused."""

import math

import pytest
import torch
from torch import Tensor

from vilvm._compile import trace
from vilvm._compile.native import NotNative, _library, native

F = torch.nn.functional
SPECIAL = torch.special


def check(functions, inputs, *, rtol=2e-6, atol=5e-7):
    """Checks the results of all functions, compiled as one program, against torch's."""

    def together(*given):
        return [f(*given) for f in functions]

    traced = trace(together, inputs)
    given = [*inputs, *traced.closed]
    found = native(traced.module, given)(*given)
    for i, (f, value) in enumerate(zip(functions, found, strict=True)):
        expected = f(*inputs)
        assert value.dtype is expected.dtype, i
        torch.testing.assert_close(
            value,
            expected,
            rtol=rtol,
            atol=atol,
            equal_nan=True,
            msg=lambda m, i=i: f"{i}: {m}",
        )


@pytest.fixture(params=[torch.float32, torch.float64])
def numbers(request):
    """Matrices (3, 4) of any numbers, of positive ones, and of odd ones."""
    torch.manual_seed(0)
    odd = torch.tensor(
        [[0.0, -0.0, math.inf, -math.inf], [math.nan, 1, -1, 2], [3, 0.5, -3, 1e-30]]
    )
    a = torch.randn(3, 4, dtype=request.param)
    return a, torch.rand(3, 4, dtype=request.param) + 0.1, odd.to(request.param)


def test_mathematical_functions(numbers):
    unary = (
        torch.abs,
        torch.atan,
        torch.ceil,
        torch.cos,
        torch.cosh,
        torch.erf,
        torch.erfc,
        torch.exp,
        torch.exp2,
        torch.expm1,
        torch.floor,
        torch.neg,
        torch.round,
        torch.sigmoid,
        torch.sign,
        torch.sin,
        torch.sinh,
        torch.square,
        torch.tan,
        torch.tanh,
        torch.trunc,
        F.elu,
        F.gelu,
        F.logsigmoid,
        F.relu,
        F.silu,
        F.softplus,
        F.leaky_relu,
    )
    check([lambda a, b, c, f=f: f(a) for f in unary], numbers)
    check([lambda a, b, c, f=f: f(c) for f in unary], numbers)
    positive = (
        torch.digamma,
        torch.lgamma,
        torch.log,
        torch.log10,
        torch.log1p,
        torch.log2,
        torch.logit,
        torch.reciprocal,
        torch.rsqrt,
        torch.sqrt,
    )
    check([lambda a, b, c, f=f: f(b) for f in positive], numbers, rtol=1e-5, atol=1e-6)
    check(
        [lambda a, b, c: torch.digamma(a), lambda a, b, c: torch.lgamma(a)],
        numbers,
        rtol=1e-5,
        atol=1e-6,
    )
    check(
        [lambda a, b, c, f=f: f(c) for f in positive if f is not torch.logit], numbers
    )
    check(
        [lambda a, b, c: torch.acos(b / 2), lambda a, b, c: torch.asin(b / 2)], numbers
    )


def test_operators_and_comparisons(numbers):
    check(
        [
            lambda a, b, c: a + c,
            lambda a, b, c: torch.add(a, b, alpha=0.3),
            lambda a, b, c: a - c,
            lambda a, b, c: 2 - a,
            lambda a, b, c: a * c,
            lambda a, b, c: a / c,
            lambda a, b, c: 1 / c,
            lambda a, b, c: torch.atan2(a, b),
            lambda a, b, c: torch.maximum(a, c),
            lambda a, b, c: torch.minimum(c, a),
            lambda a, b, c: c.clamp(-1, 2),
            lambda a, b, c: c.clamp(min=0.5),
            lambda a, b, c: c.clamp(max=0.5),
            lambda a, b, c: a.clamp(b, 2 * b),
            lambda a, b, c: b**a,
            lambda a, b, c: 2**a,
            *(lambda a, b, c, e=e: b**e for e in (-2, -1, -0.5, 0, 0.5, 1, 1.7, 2, 3)),
            lambda a, b, c: c > 0.5,
            lambda a, b, c: (a >= b) & (c == c) | (c != 1),
            lambda a, b, c: ~(a < b),
            lambda a, b, c: torch.isnan(c),
            lambda a, b, c: torch.isinf(c),
            lambda a, b, c: torch.isfinite(c),
            lambda a, b, c: torch.logical_xor(a > 0, b > 0.5),
            lambda a, b, c: torch.where(a > 0, b, c),
            lambda a, b, c: torch.where(c > 0, 1.0, b),
            lambda a, b, c: a.masked_fill(a > 0, -math.inf),
            lambda a, b, c: (a > 0).to(a.dtype) * 3,
            lambda a, b, c: (a > 0) * b,
            lambda a, b, c: (2.7 * a).long(),
            lambda a, b, c: a.double() + b.float(),
            lambda a, b, c: torch.lerp(a, b, 0.3),
            lambda a, b, c: torch.logaddexp(a, c),
            lambda a, b, c: F.binary_cross_entropy_with_logits(a, b.clamp(max=1)),
        ],
        numbers,
    )


def test_reductions(numbers):
    check(
        [
            lambda a, b, c: a.sum(),
            lambda a, b, c: a.sum(0),
            lambda a, b, c: a.sum((0, 1), keepdim=True),
            lambda a, b, c: a.T.sum(-1, keepdim=True),
            lambda a, b, c: a[:, 0].sum(),
            lambda a, b, c: (a > 0).sum(1),
            lambda a, b, c: c.sum(1),
            lambda a, b, c: a.mean(1),
            lambda a, b, c: a.var(0),
            lambda a, b, c: torch.stack(torch.var_mean(a, 1, correction=0)),
            lambda a, b, c: a.std(unbiased=False),
            lambda a, b, c: a.prod(1),
            lambda a, b, c: c.amax(1),
            lambda a, b, c: c.amin(0, keepdim=True),
            lambda a, b, c: a.max(1).values,
            lambda a, b, c: c.max(1).values,
            lambda a, b, c: c.max(1).indices,
            lambda a, b, c: c.min(0).indices,
            lambda a, b, c: a.argmax(-1),
            lambda a, b, c: a.argmin(0, keepdim=True),
            lambda a, b, c: (a > 0).all(1),
            lambda a, b, c: (c > 5).any(),
            lambda a, b, c: a.logsumexp(1),
            lambda a, b, c: c.logsumexp(0),
            lambda a, b, c: a.softmax(0),
            lambda a, b, c: a.log_softmax(1),
            lambda a, b, c: a.cumsum(1),
            lambda a, b, c: a.cumprod(0),
            lambda a, b, c: a.norm(),
            lambda a, b, c: F.layer_norm(a, (4,)),
            lambda a, b, c: torch.zeros(0, 3, dtype=a.dtype).sum(0) + a.sum(),
        ],
        numbers,
        rtol=1e-5,
        atol=1e-6,
    )


def test_views_and_parts(numbers):
    check(
        [
            lambda a, b, c: a.T + 0,
            lambda a, b, c: a.T.reshape(2, 6),
            lambda a, b, c: a[1] * 1,
            lambda a, b, c: a[-1:, ::2] * 1,
            lambda a, b, c: a[:, None, 1:] - b[None, :, :3],
            lambda a, b, c: a[0].expand(5, 4).clone(),
            lambda a, b, c: a[0].repeat(2, 3),
            lambda a, b, c: a.flip(1),
            lambda a, b, c: a.diagonal(1) + 1,
            lambda a, b, c: torch.diag_embed(a),
            lambda a, b, c: a.tril(),
            lambda a, b, c: torch.cat([a, b[:1], torch.zeros(0, dtype=a.dtype)]),
            lambda a, b, c: torch.stack([a, b], -1),
            lambda a, b, c: torch.cat(
                [p * i for i, p in enumerate(a.split([1, 2, 1], 1))], 1
            ),
            lambda a, b, c: sum(a.unbind(1)),
            lambda a, b, c: F.pad(a, (1, 2, 0, 1), value=3.0),
            lambda a, b, c: F.pad(a, (-1, 1)),
            lambda a, b, c: (
                a.unsqueeze(1).squeeze(1).unflatten(1, (2, 2)).movedim(2, 0) * 1
            ),
            lambda a, b, c: a.new_full((2, 2), 7.0),
            lambda a, b, c: torch.eye(3, dtype=a.dtype) @ a,
            lambda a, b, c: torch.arange(2, 9, 3),
            lambda a, b, c: torch.linspace(0, 1, 5, dtype=a.dtype),
            lambda a, b, c: _with_writes(a, b),
        ],
        numbers,
        rtol=1e-5,
        atol=1e-6,
    )


def _with_writes(a: Tensor, b: Tensor) -> Tensor:
    """Writes in place into parts of a copy."""
    to = a.clone()
    to[0] = b[1]
    to[:, 1:3] *= 2
    to.diagonal().add_(1)
    to[to > 1] = 1
    to.T[2].fill_(5)
    return to


def test_indexing_and_products(numbers):
    rows = torch.tensor([2, 0, -1])
    columns = torch.tensor([[1], [3]])
    check(
        [
            lambda a, b, c, i, j: a[i],
            lambda a, b, c, i, j: a[:, j],
            lambda a, b, c, i, j: a[i, j],
            lambda a, b, c, i, j: a.index_select(1, i.abs()),
            lambda a, b, c, i, j: a.gather(1, j.expand(2, 4)),
            lambda a, b, c, i, j: torch.zeros_like(a).scatter(1, i.abs()[:, None], 1.0),
            lambda a, b, c, i, j: a.scatter_add(0, (i[:, None] * 0).expand(3, 4), b),
            lambda a, b, c, i, j: a.index_add(0, i.abs(), b),
            lambda a, b, c, i, j: a.index_put((i,), b, accumulate=True),
            lambda a, b, c, i, j: F.one_hot(i.abs(), 4),
            lambda a, b, c, i, j: F.embedding(i.abs(), a),
            lambda a, b, c, i, j: a @ b.T,
            lambda a, b, c, i, j: a.T @ b,
            lambda a, b, c, i, j: a @ b[0],
            lambda a, b, c, i, j: a[0] @ b[1],
            lambda a, b, c, i, j: F.linear(a, b, b[:, 0]),
            lambda a, b, c, i, j: torch.einsum("bi,bj->bij", a, b).sum(0),
            lambda a, b, c, i, j: torch.bmm(a[None], b.T[None]),
            lambda a, b, c, i, j: torch.outer(a[0], b[0]),
            lambda a, b, c, i, j: torch.linalg.solve_triangular(
                _triangle(a), b, upper=False
            ),
            lambda a, b, c, i, j: torch.linalg.solve_triangular(
                _triangle(a).T, b.T, upper=True, left=False
            ),
            lambda a, b, c, i, j: torch.linalg.solve_triangular(
                _triangle(a).T, b, upper=True, unitriangular=True
            ),
        ],
        [*numbers, rows, columns],
        rtol=1e-5,
        atol=1e-6,
    )


def _triangle(a: Tensor) -> Tensor:
    return a[:, :3].tril() + 3 * torch.eye(3, dtype=a.dtype)


def test_gradients_are_those_of_autograd():
    def gradient(p):
        q = p.detach().requires_grad_()
        density = torch.distributions.MultivariateNormal(
            torch.zeros(3), scale_tril=q[:3, :3].exp().tril()
        ).log_prob(q[3])
        return list(torch.autograd.grad(density + q.softmax(0).lgamma().sum(), q))

    p = torch.randn(4, 3)
    (found,) = native(trace(gradient, [p]).module, [p])(p)
    torch.testing.assert_close(found, gradient(p)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (3,), (4, 5), (2, 0)])
def test_noise_is_that_of_torch_and_moves_its_generator(shape):
    def noise(x):
        return [
            x + torch.randn(shape),
            torch.empty(shape, dtype=torch.float64).normal_(),
            torch.rand(shape),
            torch.randn_like(x),
        ]

    x = torch.zeros(())
    program = native(noise, [x])
    torch.manual_seed(5)
    expected = [*noise(x), torch.rand(1)]
    torch.manual_seed(5)
    for a, b in zip([*program(x), torch.rand(1)], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_inputs_are_changed_in_place():
    def swapped(a, b):
        old = a.clone()
        a.copy_(b)
        b.copy_(old.T)
        return [a + b]

    given = [torch.randn(3, 3), torch.randn(3, 3).T]
    own = [t.clone(memory_format=torch.preserve_format) for t in given]
    (found,) = native(swapped, given)(*own)
    (expected,) = swapped(*given)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(own, given)


def test_repeated_calls_go_from_row_to_row_and_read_their_own_results():
    program = native(
        lambda x, before: [before + x * torch.ones(2)],
        [torch.tensor(0.0), torch.zeros(2)],
    )
    rows = torch.arange(1.0, 6)
    results = torch.zeros(6, 2)
    program.repeat(5, [rows, results], [4, 8], [results[1:]])
    assert results[:, 0].tolist() == [0, 1, 3, 6, 10, 15]


@pytest.mark.parametrize("shape", [(), (15,), (16,)])
def test_repeated_calls_draw_as_torch_does(shape):
    def noise(x):
        return [x + torch.randn(shape), torch.randn(3, dtype=torch.float64)]

    x, count = torch.zeros(()), 400  # so many that the generator makes new words
    program = native(noise, [x])
    torch.manual_seed(5)
    expected = [
        torch.stack(column)
        for column in zip(*(noise(x) for _ in range(count)), strict=True)
    ]
    after = torch.randn(5)
    torch.manual_seed(5)
    found = [torch.empty_like(t) for t in expected]
    program.repeat(count, [x], [0], found)
    torch.testing.assert_close(
        [*found, torch.randn(5)], [*expected, after], rtol=0, atol=0
    )


def test_noise_in_c_is_that_of_this_torch():
    native(lambda x: [x + torch.randn(3)], [torch.zeros(3)])
    assert _library._AGREES == [True]


def test_index_out_of_bounds_ends_the_program():
    program = native(lambda a, i: [a[i]], [torch.randn(3), torch.tensor([0])])
    with pytest.raises(RuntimeError, match="out of bounds"):
        program(torch.randn(3), torch.tensor([3]))


def test_inputs_of_other_shapes_are_refused():
    program = native(lambda a: [a + 1], [torch.zeros(3, 2)])
    for other in (torch.zeros(2, 3), torch.zeros(2, 3).T, torch.zeros(3, 2).double()):
        with pytest.raises(RuntimeError, match="other shapes"):
            program(other)


@pytest.mark.parametrize(
    ("function", "inputs", "reason"),
    [
        (lambda a: [a @ a.T], [torch.randn(200, 2)], "much arithmetic|large tensors"),
        (lambda a: [a + 1], [torch.zeros(100_000)], "large tensors"),
        (lambda a: [torch.linalg.svdvals(a)], [torch.randn(3, 3)], "svd"),
        (lambda a: [a + 1], [torch.zeros(2, dtype=torch.complex64)], "complex64"),
        (lambda a: [a.half() + 1], [torch.zeros(2)], "float16"),
        (lambda a: [torch.poisson(a)], [torch.ones(2)], "poisson"),
        (lambda a: [a.normal_(1, 2)], [torch.ones(2)], "noise"),
    ],
)
def test_what_it_does_not_have_is_refused(function, inputs, reason):
    with pytest.raises(NotNative, match=reason):
        native(function, inputs)


def test_library_is_compiled_once_and_needs_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("VILVM_CACHE", str(tmp_path))
    x = torch.ones(3)
    native(lambda a: [a * 0.125], [x])
    assert len(list(tmp_path.iterdir())) == 1  # the temporary folder is gone
    monkeypatch.setattr(_library, "compiler", lambda: None)
    assert native(lambda a: [a * 0.125], [x])(x)[0].tolist() == [0.125] * 3
    with pytest.raises(NotNative, match=r"no C\+\+ compiler"):
        native(lambda a: [a * 0.25], [x])
    monkeypatch.setattr(
        _library, "_compile", lambda source, path: path.write_bytes(b"no library")
    )
    with pytest.raises(NotNative, match="cannot be loaded"):
        native(lambda a: [a * 0.5], [x])
