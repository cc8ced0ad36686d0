"""What MODEL means on the command line: a run folder, a .safetensors in one, or a packed file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ellzero.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from ellzero.data.data import Data
    from ellzero.graph import Network
    from ellzero.pruning import Masks
    from ellzero.recipe import Factory, Recipe


@dataclass(frozen=True)
class Opened:
    """A network with its weights, the file they are from, and the run's recipe if there is one."""

    network: nn.Module
    file: Path
    recipe: Recipe | None

    @property
    def masks(self) -> Masks:
        """The network's masks: its zeros, and what the file says of kept ones."""
        from ellzero.packed.reader import is_packed
        from ellzero.pruning import Masks
        from ellzero.selection import select

        if is_packed(self.file):
            return Masks.of(select(self.network))
        return Masks.read(self.file, self.network)

    def data(self, name: str | None, data_root: Path | None) -> Data:
        """The data set of that name, or else the one that the network was made with.

        Raises:
            InputError: neither is known; a data set that cannot be had, or does not fit.
        """
        from ellzero.factories import build_data, with_data_root
        from ellzero.graph import Network

        factory = self.factory(name)
        if factory is None:
            raise InputError(f"{self.file} does not say what data it was made with; give --data")
        data = build_data(with_data_root(factory, data_root))
        data.check_fit(self.network)
        if isinstance(self.network, Network):
            prepare = self.network.graph.preprocess
            if prepare not in (None, data.preprocess):
                raise InputError(
                    f"{self.file} preprocesses by {prepare}, the data by {data.preprocess}; the "
                    "network was not made for these data"
                )
        return data

    def factory(self, name: str | None) -> Factory | None:
        """What the recipe, or the command line, calls the data."""
        from ellzero.recipe import Factory

        if name is not None:
            return Factory.model_validate(name)
        return None if self.recipe is None else self.recipe.data

    def traced(self, data_root: Path | None = None) -> Network:
        """The network as layers, with the preprocessing and the classes it was trained with.

        Raises:
            InputError: a network that cannot be traced; an input whose shape nobody knows.
        """
        import torch

        from ellzero.conclusion import traced
        from ellzero.graph import Network, trace
        from ellzero.model_file import read_metadata
        from ellzero.packed.reader import is_packed
        from ellzero.preprocess import Preprocess

        if isinstance(self.network, Network):
            return self.network
        about = {} if is_packed(self.file) else read_metadata(self.file)
        shape = about.get("input_shape")
        if not (isinstance(shape, list) and all(isinstance(n, int) and n > 0 for n in shape)):
            # weights alone, or a file from before the shape was noted: the data tell
            return traced(self.network, self.data(None, data_root))
        prepare = about.get("preprocess")
        try:
            preprocess = None if prepare is None else Preprocess(**_tuples(prepare))
        except TypeError as error:
            raise InputError(f"{self.file}: its preprocessing makes no sense: {error}") from None
        example = torch.zeros(1, *shape)
        return trace(self.network, example, preprocess=preprocess, classes=about.get("classes"))


def _tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def open_model(path: Path) -> Opened:
    """A network with its weights, from a run folder, a .safetensors in one, or a packed file.

    Raises:
        InputError: no such path; no recipe beside it; a file that is none, or of another network.
    """
    from ellzero.factories import PACKED, build_model
    from ellzero.model_file import load
    from ellzero.packed.reader import is_packed, read_packed
    from ellzero.recipe import Recipe
    from ellzero.run_folder import MODEL, RECIPE

    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"no model at {file}; expected a run folder, a .safetensors in one, or an .ellz"
        )
    beside = file.parent / RECIPE
    recipe = Recipe.read(beside) if beside.is_file() else None
    if is_packed(file) and (read_packed(file)[0] is not None or recipe is None):
        return Opened(load(file), file, recipe)  # which says so if it holds weights only
    if file.suffix == PACKED and not is_packed(file):
        raise InputError(f"{file} is no packed file, or its first bytes are damaged")
    if recipe is None:
        raise InputError(f"there is no {RECIPE} beside {file}, so its network is not known")
    return Opened(load(file, build_model(recipe.model, recipe.seed)), file, recipe)
