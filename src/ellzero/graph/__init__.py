"""The one view of a network as layers, for everything that makes it smaller or ships it."""

from ellzero.graph.graph import Graph, Node
from ellzero.graph.network import Network
from ellzero.graph.trace import trace

__all__ = ["Graph", "Network", "Node", "trace"]
