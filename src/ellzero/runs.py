"""Runs, opened again: the network, the data and the record that a folder or a file leads to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, ValidationError
from torch import nn

from ellzero.conclusion import traced
from ellzero.data import DATA_SETS
from ellzero.data.data import Data
from ellzero.documents import brief
from ellzero.errors import InputError
from ellzero.factories import PACKED, build_data, build_model, with_data_root
from ellzero.graph import Network, trace
from ellzero.graph.limits import UNLIMITED
from ellzero.model_file import load, read_metadata
from ellzero.networks import NETWORKS
from ellzero.operations.input import Input, InputType
from ellzero.packed.reader import is_packed, read_packed
from ellzero.preprocess import Preprocess
from ellzero.pruning import Masks
from ellzero.recipe import Factory, Recipe
from ellzero.record import EpochMetrics, Record
from ellzero.run_folder import (
    MODEL,
    RECIPE,
    RECORD,
    REFERENCE,
    RunFolder,
    read_record,
)
from ellzero.selection import select
from ellzero.trust import is_code, is_remembered, refusal, shown_recipe
from ellzero.user_code import require_own, require_own_code


@dataclass(frozen=True, eq=False)
class Run:
    """What `open_run` opened; what takes time is read when it is first asked for, and kept.

    Args:
        file: the file with the network's weights; a run that is not done has none yet.
        recipe: what the run was made by; None of a packed file that lies in no run's folder.
        data_root: folder that holds data sets.
        trusted: whether code that the recipe names may be run; else `model` and `data` refuse it.

    Example:
        >>> import tempfile, pathlib, torch, ellzero as ez
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.ellz"
        >>> _ = ez.pack(torch.nn.Linear(3, 2), path, torch.zeros(1, 3))
        >>> run = ez.open_run(path)  # of a packed file alone only the network is known
        >>> run.masks.nonzeros, run.record
        (6, None)
    """

    file: Path
    recipe: Recipe | None
    data_root: Path | None = None
    trusted: bool = False

    @property
    def folder(self) -> Path | None:
        """The run's folder; None of a packed file that lies in none."""
        return None if self.recipe is None else self.file.parent

    @cached_property
    def record(self) -> Record | None:
        """The run's record, a `FinishedRecord` if it is done; None where there is none.

        Raises:
            InputError: a record that cannot be read.
        """
        folder = self.folder
        return None if folder is None or not (folder / RECORD).is_file() else read_record(folder)

    @cached_property
    def metrics(self) -> tuple[EpochMetrics, ...]:
        """The run's metrics, those of an epoch each; () where there are none."""
        return () if self.folder is None else RunFolder.at(self.folder).metrics

    @cached_property
    def model(self) -> nn.Module:
        """The network with the file's weights, in evaluation mode.

        Raises:
            InputError: a run that is not done; a network that cannot be made, or by code that is
                not trusted; a damaged file, or one of another network.
        """
        self._require_network()
        if is_packed(self.file):
            limit = UNLIMITED if self.trusted else None
            graph, _ = read_packed(self.file, max_bytes=limit, max_macs=limit)
            if self.recipe is None or (graph is not None and not graph.opaque):
                # which says so if the file does not hold all of it
                return load(self.file, max_bytes=limit, max_macs=limit)
        return self._network_of(self.file)

    def _require_network(self) -> None:
        if not self.file.is_file():
            status = RunFolder.at(self.file.parent).status
            raise InputError(
                f"the run in {self.folder} is {status} and has no network yet; go on with "
                f"`ellzero run --resume {self.folder}`"
            )

    @cached_property
    def reference(self) -> nn.Module | None:
        """The network with the dense reference's weights; None where the folder has none.

        Raises:
            InputError: as `model` raises.
        """
        file = self.file.parent / REFERENCE
        return None if self.recipe is None or not file.is_file() else self._network_of(file)

    def _network_of(self, file: Path) -> nn.Module:
        assert self.recipe is not None
        if self.recipe.model is None:
            raise InputError(
                f"the recipe beside {file} names no network; load the weights into yours: "
                f"ez.load({str(file)!r}, model)"
            )
        self._require_trust("model", self.recipe.model, NETWORKS)
        return load(file, build_model(self.recipe.model, self.recipe.seed)).eval()

    def _require_trust(self, what: str, factory: Factory, built_in: Mapping[str, str]) -> None:
        if not is_code(factory, built_in):
            return
        who = f"{what} {factory.name!r}"
        if not self.trusted:
            raise refusal(who, self.file.parent)
        require_own_code(who, factory.name, self.file.parent)

    @cached_property
    def masks(self) -> Masks:
        """The network's masks, from its zeros and what the file says of kept ones."""
        if is_packed(self.file):
            return Masks.of(select(self.model))
        return Masks.read(self.file, self.model)

    def data(self, name: str | None = None) -> Data:
        """The data set that the network was made with, or another one by its name.

        Raises:
            InputError: none is known; a data set that cannot be had, by code that is not trusted,
                or that does not fit the network.
        """
        self._require_network()
        factory = self.recipe and self.recipe.data
        if name is not None:
            factory = Factory.model_validate(name)
        if factory is None:
            raise InputError(
                f"{self.file} does not say what data it was made with; name a data set (--data)"
            )
        if name is None:
            self._require_trust("data", factory, DATA_SETS)
            for value in factory.options.values():
                is_here = isinstance(value, str) and Path(value).exists()
                if is_here and not Path(value).is_absolute():
                    require_own(f"data {factory.name!r}", Path(value), (value,), self.file.parent)
        data = build_data(with_data_root(factory, self.data_root))
        data.check_fit(self.model)
        if self._preprocess not in (None, data.preprocess):
            raise InputError(
                f"{self.file} preprocesses by {self._preprocess}, the data by {data.preprocess}; "
                "the network was not made for these data"
            )
        return data

    def trace(self) -> Network:
        """The network as layers, with the preprocessing and the classes it was trained with.

        Raises:
            InputError: a network that cannot be traced; an input whose shape nobody knows.
        """
        if isinstance(self.model, Network):
            return self.model
        shape = self._origin.input_shape
        if shape is None:
            # weights alone, or a file from before the shape was noted: the data tell
            return traced(self.model, self.data())
        example = Input(size=shape, dtype=self._origin.input_dtype).zeros()
        classes = self._origin.classes
        return trace(self.model, example, preprocess=self._preprocess, classes=classes)

    @cached_property
    def _origin(self) -> _Origin:
        if is_packed(self.file):
            return _Origin()
        try:
            return _Origin.model_validate_json(json.dumps(read_metadata(self.file)))
        except ValidationError as error:
            first = error.errors()[0]
            where = brief(".".join(map(str, first["loc"])))
            raise InputError(
                f"{self.file} has metadata that make no sense: {where}: {first['msg']}"
            ) from None

    @cached_property
    def _preprocess(self) -> Preprocess | None:
        """The preprocessing that the network was trained with, where its file says so."""
        if isinstance(self.model, Network):
            return self.model.graph.preprocess
        table = self._origin.preprocess
        return None if table is None else Preprocess(table.scale, table.shift)


_Number = Annotated[float, Field(allow_inf_nan=False)]
_Numbers = _Number | Annotated[tuple[_Number, ...], Field(min_length=1)]

_MOST_INPUTS = 1 << 28
"""Numbers of one example that the network is traced with: 1 GiB."""


def _require_small(shape: tuple[int, ...]) -> tuple[int, ...]:
    if math.prod(shape) > _MOST_INPUTS:
        raise ValueError(f"an example of {math.prod(shape)} numbers; at most {_MOST_INPUTS}")
    return shape


_Size = Annotated[int, Field(ge=1)]
_InputShape = Annotated[tuple[_Size, ...], AfterValidator(_require_small)]


class _PreprocessTable(BaseModel, strict=True, extra="forbid"):
    scale: _Numbers = 1.0
    shift: _Numbers = 0.0


class _Origin(BaseModel, strict=True):
    """What a model file says of the network's inputs and outputs, where it does."""

    preprocess: _PreprocessTable | None = None
    classes: tuple[str, ...] | None = None
    input_shape: _InputShape | None = None
    input_dtype: InputType = "float"


_EXPECTED = "expected a run folder, a .safetensors in one, or an .ellz"


def open_run(path: str | Path, *, data_root: str | Path | None = None, trust: bool = False) -> Run:
    """Open what a run left: a run's folder, a .safetensors in one, or a packed file.

    No file is ever unpickled, and nothing in one is run. A recipe may name its network and its data
    as `package.module:function`: that code is run when they are asked for, if this user has begun
    the run in that very folder, or says that it can be trusted.

    Args:
        path: the folder or the file; the folder of a run that is not done may have no network yet.
        data_root: folder that holds data sets, each in a folder of its name.
        trust: whether code that the folder's recipe names may be run, whoever began the run, and
            a packed file be read that asks for more work or memory than it may (`ez.load`).

    Raises:
        InputError: no such path; no recipe beside it; a file that holds no model.

    Example:
        >>> import tempfile, torch, ellzero as ez
        >>> x, y = torch.randn(20, 28, 28), torch.arange(20) % 10
        >>> recipe = ez.Recipe.parse(
        ...     {"model": "lenet-300-100", "train": {"epochs": 1}, "prune": {"sparsity": 0.9}}
        ... )
        >>> from ellzero.networks.lenet import lenet_300_100
        >>> folder = tempfile.mkdtemp()
        >>> _ = ez.compress(lenet_300_100(), ez.Data((x, y), (x, y)), recipe, folder=folder)
        >>> run = ez.open_run(folder)
        >>> run.record.nonzeros, run.masks.nonzeros, type(run.reference).__name__
        (26620, 26620, 'LeNet300100')
    """
    path = Path(path)
    file = path / MODEL if path.is_dir() else path
    packed = is_packed(file)
    begun = (path / RECIPE).is_file() and RunFolder.at(path).status not in ("missing", "done")
    if not begun and not file.is_file():
        raise InputError(f"no model at {file}; {_EXPECTED}")
    if file.suffix == PACKED and not packed:
        raise InputError(f"{file} is no packed file, or its first bytes are damaged")
    if file.suffix != ".safetensors" and not packed:
        raise InputError(f"{file} is no model file; {_EXPECTED}")
    beside = file.parent / RECIPE
    recipe = shown_recipe(file.parent, trust=trust) if beside.is_file() else None
    if recipe is None and not packed:
        raise InputError(f"there is no {RECIPE} beside {file}, so its network is not known")
    trusted = trust or is_remembered(file.parent)
    return Run(file, recipe, None if data_root is None else Path(data_root), trusted)
