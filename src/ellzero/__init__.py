"""ellzero makes PyTorch networks small, on purpose and measurably.

Train with an l0 penalty, prune, fine-tune, ship what is left; see the README for the three ways in.
Public names are loaded on first use, because torch alone takes over a second to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    name: f"ellzero.{module}"
    for module, names in {
        "compaction.compact": "Compacted Removed compact",
        "data.augment": "Augment",
        "data.data": "Data",
        "errors": "BudgetError DivergenceError EllzeroError EllzeroWarning InputError "
        "UserCodeError WriteError",
        "export.c.compiled": "Compiled compile_c",
        "export.c.source": "CLayer CSource export_c",
        "export.onnx_file": "OnnxFile export_onnx",
        "graph": "Network trace",
        "model_file": "load save",
        "packed.pack": "Packed pack",
        "penalties": "GroupLasso HoyerSquare L0 L1 L2 Penalty Term",
        "preprocess": "Preprocess",
        "pruning": "Hold Masks prune",
        "pruning.budget": "Budget",
        "quantization.finetune": "Quantized",
        "quantization.integer": "IntegerForm",
        "quantization.quantize": "quantize",
        "recipe": "Recipe",
        "record": "EpochMetrics Evaluation FinishedRecord Record",
        "regularizers": "HardConcrete PMMP Regularizer",
        "report.page": "Report write_report",
        "run_folder": "RunFolder",
        "runs": "Run open_run",
        "schedules": "Schedule",
        "scheme": "Result compress",
        "selection": "Selection select",
        "shipping": "Destinations Quantization Shipped ship",
        "study.ray_cluster": "RayCluster",
        "study.results": "Results",
        "study.runner": "compare",
        "study.study": "Study",
        "training.evaluation": "evaluate",
    }.items()
    for name in names.split()
}
"""The module of each public name, a line for each module; type checkers read them below."""

__all__ = sorted(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    __version__: str
    from ellzero.compaction.compact import Compacted as Compacted
    from ellzero.compaction.compact import Removed as Removed
    from ellzero.compaction.compact import compact as compact
    from ellzero.data.augment import Augment as Augment
    from ellzero.data.data import Data as Data
    from ellzero.errors import BudgetError as BudgetError
    from ellzero.errors import DivergenceError as DivergenceError
    from ellzero.errors import EllzeroError as EllzeroError
    from ellzero.errors import EllzeroWarning as EllzeroWarning
    from ellzero.errors import InputError as InputError
    from ellzero.errors import UserCodeError as UserCodeError
    from ellzero.errors import WriteError as WriteError
    from ellzero.export.c.compiled import Compiled as Compiled
    from ellzero.export.c.compiled import compile_c as compile_c
    from ellzero.export.c.source import CLayer as CLayer
    from ellzero.export.c.source import CSource as CSource
    from ellzero.export.c.source import export_c as export_c
    from ellzero.export.onnx_file import OnnxFile as OnnxFile
    from ellzero.export.onnx_file import export_onnx as export_onnx
    from ellzero.graph import Network as Network
    from ellzero.graph import trace as trace
    from ellzero.model_file import load as load
    from ellzero.model_file import save as save
    from ellzero.packed.pack import Packed as Packed
    from ellzero.packed.pack import pack as pack
    from ellzero.penalties import L0 as L0
    from ellzero.penalties import L1 as L1
    from ellzero.penalties import L2 as L2
    from ellzero.penalties import GroupLasso as GroupLasso
    from ellzero.penalties import HoyerSquare as HoyerSquare
    from ellzero.penalties import Penalty as Penalty
    from ellzero.penalties import Term as Term
    from ellzero.preprocess import Preprocess as Preprocess
    from ellzero.pruning import Hold as Hold
    from ellzero.pruning import Masks as Masks
    from ellzero.pruning import prune as prune
    from ellzero.pruning.budget import Budget as Budget
    from ellzero.quantization.finetune import Quantized as Quantized
    from ellzero.quantization.integer import IntegerForm as IntegerForm
    from ellzero.quantization.quantize import quantize as quantize
    from ellzero.recipe import Recipe as Recipe
    from ellzero.record import EpochMetrics as EpochMetrics
    from ellzero.record import Evaluation as Evaluation
    from ellzero.record import FinishedRecord as FinishedRecord
    from ellzero.record import Record as Record
    from ellzero.regularizers import PMMP as PMMP
    from ellzero.regularizers import HardConcrete as HardConcrete
    from ellzero.regularizers import Regularizer as Regularizer
    from ellzero.report.page import Report as Report
    from ellzero.report.page import write_report as write_report
    from ellzero.run_folder import RunFolder as RunFolder
    from ellzero.runs import Run as Run
    from ellzero.runs import open_run as open_run
    from ellzero.schedules import Schedule as Schedule
    from ellzero.scheme import Result as Result
    from ellzero.scheme import compress as compress
    from ellzero.selection import Selection as Selection
    from ellzero.selection import select as select
    from ellzero.shipping import Destinations as Destinations
    from ellzero.shipping import Quantization as Quantization
    from ellzero.shipping import Shipped as Shipped
    from ellzero.shipping import ship as ship
    from ellzero.study.ray_cluster import RayCluster as RayCluster
    from ellzero.study.results import Results as Results
    from ellzero.study.runner import compare as compare
    from ellzero.study.study import Study as Study
    from ellzero.training.evaluation import evaluate as evaluate


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("ellzero")
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'ellzero' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
