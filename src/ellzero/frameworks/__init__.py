"""The scheme within other libraries: a module for each, which alone imports that library."""

from ellzero.frameworks.scheme import Scheme
from ellzero.frameworks.sparsifier import Sparsifier

__all__ = ["Scheme", "Sparsifier"]
