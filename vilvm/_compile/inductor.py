"""Compilation of functions of tensors by torch's Inductor."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from vilvm._compile.guards import MOST_PROGRAMS, Guards, state_change_reason
from vilvm._compile.patches import UntraceableError
from vilvm._compile.stored import load, store, where
from vilvm._compile.tracing import reason_of, trace

__all__ = [
    "Compile",
    "Compiler",
    "assert_matches",
    "check_compile",
    "graph",
    "inductor",
    "program",
    "worth_compiling",
]

# Makes a program of a function of tensors and example tensors.
Compiler = Callable[[Callable[..., list[Tensor]], Sequence[Tensor]], Callable[..., Any]]
# Relative to the mean absolute value; sums of float32 in another order differ by some 1e-6.
_TOLERANCE = 1e-4
# What a stored program depends on besides its graph: raise it when `_compiled` or ``products``
# changes.
_OPTIONS = "vilvm 1"
# The choices of a user; "auto" compiles when it saves time.
Compile = bool | Literal["auto"]


def check_compile(what: str, compile: Any) -> None:
    """Raises ValueError, naming `what`, unless `compile` is True, False or "auto"."""
    if not (compile is True or compile is False or compile == "auto"):
        raise ValueError(
            f"{what}: unknown compile={compile!r}; choose True, False or 'auto'."
        )


def worth_compiling(compile: Compile, count: int, least: int) -> bool:
    """Whether to compile a function that runs `count` times; "auto" does so from `least` on."""
    return compile is True or (compile == "auto" and count >= least)


def program(
    function: Callable[..., list[Tensor]],
    inputs: Sequence[Tensor],
    compiler: Compiler,
    watched: Sequence[Any] = (),
) -> Callable[..., list[Tensor]]:
    """A function traced once and compiled, for inputs of the same shapes.

    The function is run once, with all its effects. The tensors that it closes over are read at
    each call. If Python state that it read changes, it is traced again; if that happens often, the
    function itself is called.

    Arguments:
        function: of tensors.
        inputs: such tensors.
        compiler: makes a program of a function of tensors and example tensors.
        watched: the modules and functions whose state `function` reads, besides its own.

    Raises:
        UntraceableError: no graph or no program can be made, or the state that the function reads
            changes whenever it is run.
    """

    def made() -> tuple[Guards, Callable[..., list[Tensor]]]:
        before = Guards.of([function, *watched])
        traced = trace(function, inputs)
        guards, moved = before.settled(traced.closed)
        if moved.places:  # the run itself changes the state that it reads
            raise UntraceableError(state_change_reason(moved.places[0].name))
        run = compiler(
            lambda *flat: list(traced.module(*flat)), [*inputs, *traced.closed]
        )
        return guards, lambda *given: list(run(*given, *traced.closed))

    kept = [made()]

    def guarded(*given: Tensor) -> list[Tensor]:
        found = next((run for guards, run in kept if guards.changed() is None), None)
        if found is None and len(kept) < MOST_PROGRAMS:
            with suppress(UntraceableError), kept_state(given):
                kept.append(made())
                found = kept[-1][1]
        return (function if found is None else found)(*given)

    return guarded


def kept_state(tensors: Sequence[Tensor]) -> Any:
    """A context that preserves torch's generators, of the CPU and of the tensors' device."""
    return torch.random.fork_rng(devices=[t.device for t in tensors if t.is_cuda][:1])


def assert_matches(
    eager: Mapping[str, Tensor], run: Callable[[], Sequence[Tensor]]
) -> list[Tensor]:
    """Returns the program's outputs; raises unless they equal the eager ones.

    Tracing freezes counts and constants that Python took from tensors, so each batch is compared.

    Arguments:
        eager: the eager outputs by name, in their order.
        run: the program.

    Raises:
        UntraceableError: an output differs, or the program fails.
    """
    try:
        found = list(run())
    except Exception as error:
        raise UntraceableError(f"its program fails ({reason_of(error)})") from error
    for (name, mine), other in zip(eager.items(), found, strict=True):
        allowed = _TOLERANCE * mine[mine.isfinite()].abs().mean().nan_to_num(0.0).item()
        if not torch.allclose(
            mine, other, rtol=_TOLERANCE, atol=allowed, equal_nan=True
        ):
            raise UntraceableError(f"its {name} is not the eager one on the same noise")
    return found


def inductor(
    function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]
) -> Callable[..., Any]:
    """A function as a program of torch's Inductor, which also changes tensors in place.

    torch caches programs on disk (TORCHINDUCTOR_CACHE_DIR), so that another process compiles the
    same one faster.

    Arguments:
        function: of tensors.
        inputs: such tensors.

    Raises:
        UntraceableError: the compilation fails, or there is no C++ compiler.
    """
    flat = [t.detach() for t in inputs]
    try:
        # The compiler draws random numbers, so the generators are preserved.
        with _quiet(), torch.no_grad(), kept_state(flat):
            module = graph(function, flat)
            if flat[0].device.type != "cpu":
                return _compiled(module, flat)
            path = where(module, flat, _OPTIONS)
            known = load(path)
            if known is not None:
                return known
            # `vec_isa_ok` spares a test of the C++ compiler that takes as long as a program.
            options = {"cpp_wrapper": True, "cpp.vec_isa_ok": True}
            with suppress(Exception):  # some operations have no C++ entry
                return _compiled(module, flat, path, **options)
            return _compiled(module, flat)
    except Exception as error:
        raise UntraceableError(
            f"torch's compiler failed ({reason_of(error)})"
        ) from error


def _compiled(
    module: Any, flat: list[Tensor], path: Path | None = None, **options: Any
) -> Callable[..., Any]:
    """The program itself, without the layers around it that check every input of every call.

    Arguments:
        module: its graph.
        flat: example inputs.
        path: where it is kept, if it is a library.
        options: of Inductor.
    """
    import torch._functorch.config as aot
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    from vilvm._compile.products import ProductsAlone

    if flat[0].device.type == "cpu":
        options["post_grad_custom_post_pass"] = ProductsAlone()
    made: list[tuple[Callable[..., Any], list[Any]]] = []

    def inner(module: Any, inputs: list[Any], **kwargs: Any) -> Any:
        made.append((compile_fx_inner(module, inputs, **kwargs), inputs))
        return made[-1][0]

    with (
        # noise from torch's generators in the eager order, not from the compiler's
        config.patch(
            fallback_random=True, size_asserts=False, alignment_asserts=False, **options
        ),
        # the cache would return the program without calling `inner`
        aot.patch(enable_autograd_cache=False),
    ):
        whole = compile_fx(module, flat, inner_compile=inner)
    if len(made) != 1 or _kinds(made[0][1]) != _kinds(flat):
        return cast(Callable[..., Any], whole)
    program = made[0][0]
    store(path, program)
    return lambda *given: program(list(given))


def _kinds(tensors: Sequence[Any]) -> list[Any]:
    return [(t.shape, t.dtype) for t in tensors]


def graph(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> Any:
    """A function as a graph, which is run operation by operation; a compiler without Inductor."""
    with torch.no_grad():
        return make_fx(function, tracing_mode="fake")(*(t.detach() for t in inputs))


@contextmanager
def _quiet() -> Iterator[None]:
    """A context without the compiler's warnings, which a user cannot act on."""
    loggers = [
        logging.getLogger(name)
        for name in ("torch.utils.cpp_extension", "torch._inductor")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
