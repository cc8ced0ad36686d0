"""A traced network as a module: it runs its graph, under the state_dict keys it was traced with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.errors import InputError
from ellzero.graph.graph import Graph
from ellzero.operations import Embedding
from ellzero.weights import Holder, Kind


class Outputs(dict[str, Tensor]):
    """What a network of several named outputs gives, by name; each name is an attribute, too.

    Example:
        >>> import torch
        >>> Outputs(logits=torch.zeros(2)).logits
        tensor([0., 0.])
    """

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no output is named {name!r}; there are {list(self)}") from None


class Network(Holder):
    """A network made of a graph and its weights.

    Args:
        graph: the architecture.
        weights: tensors by state_dict key; floating ones become parameters.
        kinds: of what kind weights are, where the operations do not say it.

    Raises:
        InputError: weights that the graph does not fit, or names that cannot be keys.

    Example:
        >>> import torch, ellzero as ez
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
        >>> network = ez.trace(model, torch.zeros(1, 3))
        >>> list(network.state_dict()), [node.op.kind for node in network.graph.nodes]
        (['0.weight', '0.bias'], ['input', 'linear', 'activation'])
    """

    def __init__(
        self, graph: Graph, weights: Mapping[str, Tensor], kinds: Mapping[str, Kind] | None = None
    ) -> None:
        super().__init__()
        self.graph = graph
        self.shapes = graph.shapes({name: tuple(w.shape) for name, w in weights.items()})
        """Shape of one example at every node, by its name."""
        last = {name: node.name for node in graph.nodes for name in node.inputs}
        last |= dict.fromkeys(graph.results, "")
        self._done = {
            node.name: [name for name in set(node.inputs) if last[name] == node.name]
            for node in graph.nodes
        }
        self._weights: dict[str, dict[str, tuple[nn.Module, str]]] = {}
        # from here on no attribute is set any more, for a weight may have its name
        known: dict[str, Kind] = {**_kinds(graph), **(kinds or {})}
        for name, tensor in weights.items():
            _register(self, name, tensor, known.get(name, "other"))
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

    def weight_kinds(self) -> dict[str, Kind]:
        """The kind of each weight, by its state_dict key."""
        places = {name: self._locate(name) for name in self.graph.weight_names()}
        return {
            name: holder.kinds[local]
            for name, (holder, local) in places.items()
            if isinstance(holder, Holder)
        }

    def weight(self, name: str) -> Tensor:
        """A weight by its state_dict key: the parameter or buffer itself."""
        return _held(*self._locate(name))

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """The network's output for a batch of any size: a tensor, a tuple, or `Outputs` by name.

        Args:
            inputs: in order, of the shapes that it was traced with.
            named: the others by their names.

        Raises:
            InputError: inputs that are missing, too many, or of another shape or batch size.
        """
        values: dict[str, Any] = self._inputs(inputs, named)
        for node in self.graph.nodes[len(values) :]:
            # looked up anew each time, so that whatever replaces a parameter is seen
            weights = {role: _held(*where) for role, where in self._weights[node.name].items()}
            values[node.name] = node.op.run([values[name] for name in node.inputs], weights)
            for name in self._done[node.name]:
                del values[name]
        results = tuple(values[name] for name in self.graph.results)
        if not self.graph.outputs:
            return results[0]
        names = [output.name for output in self.graph.outputs if output.name is not None]
        if len(names) < len(results):
            return results
        return Outputs(dict(zip(names, results, strict=True)))

    def _inputs(self, inputs: Sequence[Tensor], named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        expected = self.graph.inputs
        given = {**dict(zip(expected, inputs, strict=False)), **named}
        if len(inputs) + len(named) != len(expected) or set(given) != set(expected):
            what = ", ".join([*(["one"] * len(inputs)), *named])
            raise InputError(
                f"{len(inputs) + len(named)} inputs ({what}); expected {', '.join(expected)}"
            )
        for name, x in given.items():
            if tuple(x.shape[1:]) != expected[name].size:
                sizes = "".join(f", {size}" for size in expected[name].size)
                who = "an input" if len(expected) == 1 else f"the input {name}"
                raise InputError(f"{who} of shape {tuple(x.shape)}; expected (N{sizes})")
        # shape[0], for len(x) would be a number for good where the network is exported
        counts = [x.shape[0] for x in given.values()]
        if any(count != counts[0] for count in counts[1:]):
            shown = ", ".join(f"{name} has {len(x)}" for name, x in given.items())
            raise InputError(f"inputs of different batch sizes: {shown}")
        return {name: given[name] for name in expected}

    def examples(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """A random batch of each input: normal numbers, or tokens that embeddings have.

        Args:
            count: examples in the batch.
            generator: of the random numbers; by default torch's global one.
        """
        dtype = next((w.dtype for w in self.parameters()), torch.get_default_dtype())
        batches = []
        for name, op in self.graph.inputs.items():
            size = (count, *op.size)
            if op.is_integer:
                limit = self._tokens(name)
                values = torch.randint(limit, size, generator=generator)
                batches.append(values.to(getattr(torch, op.dtype)))
            else:
                batches.append(torch.randn(size, generator=generator, dtype=dtype))
        return tuple(batches)

    def _tokens(self, name: str) -> int:
        """How many different tokens an input may have: as many as each embedding that reads it."""
        readers = self.graph.consumers()[name]
        tables = [n.weights["weight"] for n in readers if isinstance(n.op, Embedding)]
        rows = [len(self.weight(name)) for name in tables]
        return min(rows, default=2)

    def __repr__(self) -> str:
        # the nodes, not the modules that hold weights for them
        lines = (f"  ({n.name}): {n.op.kind} -> {self.shapes[n.name]}\n" for n in self.graph.nodes)
        return f"Network(\n{''.join(lines)})"


def outputs_of(result: Any) -> list[Tensor]:
    """What a network gives as a list, in order."""
    if isinstance(result, Tensor):
        return [result]
    return list(result.values() if isinstance(result, Mapping) else result)


def _kinds(graph: Graph) -> dict[str, Kind]:
    """Of what kind weights are by the operations that use them; an embedding's are no layer's."""
    kinds: dict[str, Kind] = {}
    for node in graph.nodes:
        if isinstance(node.op, Embedding):
            kinds[node.weights["weight"]] = "embedding"
        elif node.op.LAYER is not None:
            for name in node.layer_weights.values():
                kinds.setdefault(name, node.op.LAYER)
    return kinds


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
