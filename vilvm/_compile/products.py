"""A pass of torch's Inductor for the CPU: matrix products without the addition of a bias."""

from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph

__all__ = ["ProductsAlone"]


class ProductsAlone(CustomGraphPass):
    """Splits ``addmm``, which Inductor creates, into a product and an addition.

    On a CPU, ``addmm`` first writes the bias into each row of the result. A separate addition runs
    in the same loop as the activation after it, and costs nothing.
    """

    def __call__(self, graph: Graph) -> None:
        """Changes `graph` in place."""
        for node in graph.find_nodes(
            op="call_function", target=torch.ops.aten.addmm.default
        ):
            added, left, right = node.args
            # Not with factors, nor in half precision, where the product would be rounded first.
            if node.kwargs or node.meta["val"].dtype.itemsize < 4:
                continue
            with graph.inserting_before(node):
                product = graph.call_function(torch.ops.aten.mm.default, (left, right))
                total = graph.call_function(torch.ops.aten.add.Tensor, (product, added))
            product.meta.update(node.meta)
            total.meta.update(node.meta)
            node.replace_all_uses_with(total)
            graph.erase_node(node)

    def uuid(self) -> Any:
        """Identifies the pass in the cache of programs."""
        return get_hash_for_files((__file__,))
