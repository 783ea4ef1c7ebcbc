"""A pass of torch's Inductor for the CPU: a matrix product is that, and what is added to it is
added by what reads it.
"""

from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph

__all__ = ["ProductsAlone"]


class ProductsAlone(CustomGraphPass):
    """Takes ``addmm`` apart, which Inductor puts together, and which on a CPU writes the bias into
    the product's place first, row by row.

    An addition by itself is made in the same loop as the activation behind it, and costs nothing.
    """

    def __call__(self, graph: Graph) -> None:
        """Changes `graph` in place."""
        for node in graph.find_nodes(op="call_function", target=torch.ops.aten.addmm.default):
            added, left, right = node.args
            if (
                node.kwargs or node.meta["val"].dtype.itemsize < 4
            ):  # multiples of the one or the other; a product that would be rounded first
                continue
            with graph.inserting_before(node):
                product = graph.call_function(torch.ops.aten.mm.default, (left, right))
                total = graph.call_function(torch.ops.aten.add.Tensor, (product, added))
            product.meta.update(node.meta)
            total.meta.update(node.meta)
            node.replace_all_uses_with(total)
            graph.erase_node(node)

    def uuid(self) -> Any:
        """What a program on disk is known by, beside its graph."""
        return get_hash_for_files((__file__,))
