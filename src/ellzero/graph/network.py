"""A traced network as a module: it runs its graph, under the state_dict keys it was traced with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ellzero.errors import InputError
from ellzero.graph.graph import Graph


class Network(nn.Module):
    """A network made of a graph and its weights.

    Args:
        graph: the architecture.
        weights: tensors by state_dict key; floating ones become parameters.

    Raises:
        InputError: weights that the graph does not fit, or names that cannot be keys.

    Example:
        >>> import torch, ellzero as ez
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
        >>> network = ez.trace(model, torch.zeros(1, 3))
        >>> list(network.state_dict()), [node.op.kind for node in network.graph.nodes]
        (['0.weight', '0.bias'], ['input', 'linear', 'activation'])
    """

    def __init__(self, graph: Graph, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.graph = graph
        self.shapes = graph.shapes({name: tuple(w.shape) for name, w in weights.items()})
        """Shape of one example at every node, by its name."""
        for name, tensor in weights.items():
            _register(self, name, tensor)
        self._weights = {
            node.name: {role: self._locate(name) for role, name in node.weights.items()}
            for node in graph.nodes
        }
        last = {name: node.name for node in graph.nodes for name in node.inputs}
        self._done = {
            node.name: [name for name in set(node.inputs) if last[name] == node.name]
            for node in graph.nodes
        }

    def _locate(self, name: str) -> tuple[nn.Module, str]:
        path, _, local = name.rpartition(".")
        return self.get_submodule(path), local

    def weight(self, name: str) -> Tensor:
        """A weight by its state_dict key: the parameter or buffer itself."""
        module, local = self._locate(name)
        return getattr(module, local)

    def forward(self, x: Tensor) -> Tensor:
        """The network's output for a batch of the shape it was traced with, any batch size."""
        if tuple(x.shape[1:]) != self.graph.input_shape:
            raise InputError(
                f"an input of shape {tuple(x.shape)}; expected (N, "
                f"{', '.join(map(str, self.graph.input_shape))})"
            )
        first, *rest = self.graph.nodes
        values: dict[str, Any] = {first.name: x}
        for node in rest:
            # looked up anew each time, so that whatever replaces a parameter is seen
            weights = {r: getattr(m, local) for r, (m, local) in self._weights[node.name].items()}
            values[node.name] = node.op.run([values[name] for name in node.inputs], weights)
            for name in self._done[node.name]:
                del values[name]
        return values[self.graph.nodes[-1].name]

    def extra_repr(self) -> str:
        """The nodes, one a line."""
        return "\n".join(
            f"({node.name}): {node.op.kind} -> {self.shapes[node.name]}"
            for node in self.graph.nodes
        )


def _register(root: nn.Module, name: str, tensor: Tensor) -> None:
    *path, local = name.split(".")
    module = root
    try:
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            child = module._modules[part]
            assert child is not None
            module = child
        if tensor.is_floating_point():
            wanted = isinstance(tensor, nn.Parameter) and tensor.requires_grad
            module.register_parameter(local, nn.Parameter(tensor.detach(), requires_grad=wanted))
        else:
            module.register_buffer(local, tensor)
    except KeyError as error:
        raise InputError(f"no weight can be named {name!r}: {error.args[0]}") from None
