"""A traced network as a module: it runs its graph, under the state_dict keys it was traced with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ellzero.errors import InputError
from ellzero.graph.graph import Graph
from ellzero.selection import Holder, Kind


class Network(Holder):
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
        last = {name: node.name for node in graph.nodes for name in node.inputs}
        self._done = {
            node.name: [name for name in set(node.inputs) if last[name] == node.name]
            for node in graph.nodes
        }
        self._weights: dict[str, dict[str, tuple[nn.Module, str]]] = {}
        # from here on no attribute is set any more, for a weight may have its name
        kinds: dict[str, Kind] = {
            node.weights["weight"]: node.op.LAYER for node in graph.nodes if node.op.LAYER
        }
        for name, tensor in weights.items():
            _register(self, name, tensor, kinds.get(name, "other"))
        for node in graph.nodes:
            self._weights[node.name] = {r: self._locate(name) for r, name in node.weights.items()}

    def _locate(self, name: str) -> tuple[nn.Module, str]:
        *path, local = name.split(".")
        module: nn.Module = self
        for part in path:
            child = module._modules[part]
            assert child is not None
            module = child
        return module, local

    def weight(self, name: str) -> Tensor:
        """A weight by its state_dict key: the parameter or buffer itself."""
        return _held(*self._locate(name))

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
            weights = {role: _held(*where) for role, where in self._weights[node.name].items()}
            values[node.name] = node.op.run([values[name] for name in node.inputs], weights)
            for name in self._done[node.name]:
                del values[name]
        return values[self.graph.nodes[-1].name]

    def __repr__(self) -> str:
        # the nodes, not the modules that hold weights for them
        lines = (f"  ({n.name}): {n.op.kind} -> {self.shapes[n.name]}\n" for n in self.graph.nodes)
        return f"Network(\n{''.join(lines)})"


def _register(root: Holder, name: str, tensor: Tensor, kind: Kind) -> None:
    *path, local = name.split(".")
    if not all((*path, local)) or "training" in (*path, local):  # which train() and eval() set
        raise InputError(f"no weight can be named {name!r}")
    # put straight into the module's dictionaries: a key may be a name that the class has a use for,
    # such as the "weight" of a network that is one layer
    module = root
    for part in path:
        child = module._modules.setdefault(part, Holder())
        assert isinstance(child, Holder)
        module = child
    module.kinds[local] = kind
    if tensor.is_floating_point():
        wanted = isinstance(tensor, nn.Parameter) and tensor.requires_grad
        module._parameters[local] = nn.Parameter(tensor.detach(), requires_grad=wanted)
    else:
        module._buffers[local] = tensor


def _held(module: nn.Module, local: str) -> Tensor:
    for held in (module._parameters, module._buffers):
        tensor = held.get(local)
        if tensor is not None:
            return tensor
    return getattr(module, local)
