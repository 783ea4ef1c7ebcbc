"""Steps of a small model that are taken together, without Python between them.

What differs between steps lies in tables: a row of the optimizer's numbers, of the objective's,
and a batch. The native program goes from row to row (``NativeProgram.repeat``).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vilvm._compile import NativeProgram
from vilvm.training._adam import GraphAdam
from vilvm.training._traced_step import Program, StepTracer

__all__ = ["Block"]


class Block:
    """Steps to be taken together.

    Arguments:
        program: of the step; native.
        tracer: which made it.
        adam: the optimizer in it.
    """

    def __init__(self, program: Program, tracer: StepTracer, adam: GraphAdam):
        self.program = program
        self.tracer = tracer
        self.adam = adam
        self._adam: list[Tensor] = []  # rows of the optimizer's numbers
        self._numbers: list[list[Tensor]] = []  # of each step with a row of its own

    @staticmethod
    def serves(program: Program) -> bool:
        """Whether the steps of a program can be taken together."""
        return isinstance(program.run, NativeProgram)

    def add(self, count: int) -> int:
        """Adds steps with the present options of the optimizer and numbers of the objective.

        Arguments:
            count: how many there may be.

        Returns:
            How many were added: one if the objective has numbers, which change with each step.
        """
        numbers = self.tracer.numbers()
        count = 1 if numbers else count
        self._adam.append(self.adam.numbers(count))
        self._numbers.append(numbers)
        return count

    def launch(self, batches: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
        """Takes the steps.

        Arguments:
            batches: the tensors of the first batch.
            sizes: by tensor, how many bytes further the next batch lies.

        Returns:
            (loss, gradient norm, 1 if the parameters moved) of each step, float64, shape
            (steps, 3).
        """
        adam = torch.cat(self._adam)
        tables = [torch.stack(column) for column in zip(*self._numbers, strict=True)]
        assert not tables or len(tables[0]) == len(adam)
        fixed = [*self.program.closed, *self.adam.moments(self.program.moved)]
        # Each step reads the result of the one before it, from the row above its own.
        results = torch.empty(len(adam) + 1, 3, dtype=torch.float64)
        results[0] = self.tracer.start
        inputs = [*batches, *tables, *fixed, adam, results]
        steps = [
            *sizes,
            *(t[0].nbytes for t in tables),
            *(0 for _ in fixed),
            adam[0].nbytes,
            results[0].nbytes,
        ]
        assert isinstance(self.program.run, NativeProgram)
        self.program.run.repeat(len(adam), inputs, steps, [results[1:]])
        return results[1:]
