"""Generated C as a Python callable: built by the system's compiler, called through ctypes."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ellzero.errors import InputError
from ellzero.export.c.source import CSource

FLAGS = ("-std=c99", "-O2", "-ftree-vectorize", "-march=native", "-ffp-contract=fast")
"""Standard C, but for products and sums in one rounding.

Not -O3: gcc then unrolls the short loops first, and does not vectorize what is left of them.
"""

COMPILERS = ("cc", "gcc", "clang")


class Compiled:
    """A network in C, loaded; `compile_c` makes it.

    Calling it takes raw inputs, a tensor or array (N, ...) of as many values each as the network
    has inputs, and gives float32 outputs (N, outputs). A network of integers takes and gives int8.

    Example:
        >>> import tempfile, torch, ellzero as ez
        >>> model = torch.nn.Linear(8, 4)
        >>> source = ez.export_c(model, tempfile.mkdtemp(), torch.zeros(1, 8))
        >>> compiled = ez.compile_c(source)
        >>> compiled.inputs, compiled.outputs, compiled(torch.zeros(5, 8)).shape
        (8, 4, torch.Size([5, 4]))
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        name: str,
        inputs: int,
        outputs: int,
        weights: np.ndarray | None = None,
        dtype: type[np.float32 | np.int8] = np.float32,
    ) -> None:
        self.name, self.inputs, self.outputs = name, inputs, outputs
        self.dtype = np.dtype(dtype)
        self._weights = weights  # C reads them where they are
        if weights is not None:
            take = getattr(library, f"{name}_set_weights")
            take.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
            if take(weights.ctypes.data, weights.nbytes):
                raise InputError(f"{name}_weights.bin is not of {name}.c; write both again")
        self._predict = getattr(library, f"{name}_predict")
        self._predict.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        self._predict.restype = ctypes.c_int

    def __call__(self, x: Tensor | np.ndarray) -> Tensor:
        """Outputs of raw inputs, one example after the other.

        Raises:
            InputError: another number of values; a token that the network does not know.
        """
        if isinstance(x, Tensor):
            x = (x if x.dtype == torch.int8 else x.float()).detach().cpu().numpy()
        values = np.asarray(x)
        if self.dtype == np.int8 and values.dtype != np.int8:
            raise InputError(
                f"inputs of {values.dtype}; {self.name} computes in integers and takes int8, which "
                f"{self.name}_input_from_floats makes"
            )
        batch = np.ascontiguousarray(values, dtype=self.dtype)
        if not len(batch) or batch.size != len(batch) * self.inputs:
            raise InputError(
                f"inputs of shape {batch.shape}; expected (N, ...) of {self.inputs} values each"
            )
        outputs = np.empty((len(batch), self.outputs), self.dtype)
        self.bound(batch, outputs)()
        return torch.from_numpy(outputs)

    def bound(self, batch: np.ndarray, outputs: np.ndarray) -> Callable[[], None]:
        """The C function on memory that stays where it is: a call costs little more than C's own.

        Args:
            batch: contiguous float32 (or int8), `inputs` values an example.
            outputs: contiguous float32 (or int8) (N, outputs); each call writes it.

        Returns:
            A function that runs the network on each example; it raises an InputError where the
            network does not know a token.

        Raises:
            InputError: arrays of another type or size, where C would read or write astray.
        """
        count = len(batch) if np.ndim(batch) else 0
        self._check_memory(batch, "batch", count, self.inputs)
        self._check_memory(outputs, "outputs", count, self.outputs)
        if not outputs.flags.writeable:
            raise InputError("outputs can only be read; expected memory to write to")
        first, into = batch.ctypes.data, outputs.ctypes.data
        size = self.dtype.itemsize
        steps = size * self.inputs, size * self.outputs
        places = [(first + n * steps[0], into + n * steps[1]) for n in range(count)]
        predict, kept = self._predict, (batch, outputs)

        def call(_: object = kept) -> None:  # the arrays live as long as the function
            for x, y in places:
                if predict(x, y) < 0:
                    number = (x - first) // steps[0]
                    raise InputError(
                        f"{self.name} refuses example {number}: a token is none that the network "
                        "knows; expected whole numbers below the rows of its table"
                    )

        return call

    def _check_memory(self, array: np.ndarray, what: str, count: int, size: int) -> None:
        if not isinstance(array, np.ndarray) or array.dtype != self.dtype:
            kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise InputError(f"{what} is {kind}; expected a numpy array of {self.dtype}")
        if not (array.flags.c_contiguous and array.flags.aligned) or array.size != count * size:
            raise InputError(
                f"{what} is {array.shape} with strides {array.strides}; expected {count} times "
                f"{size} values, one after the other"
            )


def compile_c(
    folder: str | Path | CSource,
    *,
    name: str | None = None,
    compiler: str | None = None,
    flags: Sequence[str] = FLAGS,
) -> Compiled:
    """Build what `export_c` wrote with the system's C compiler, into a Python callable.

    Nothing is written into the folder; the library lives in a temporary one until it is loaded.

    Args:
        folder: the folder, or what `export_c` returned.
        name: which network, where there are several in the folder.
        compiler: by default the environment's CC, else cc, gcc or clang; options may follow it.
        flags: how to compile; by default for this machine, at its fastest.

    Raises:
        InputError: no such folder or network; no compiler; it failed.

    Example:
        >>> import tempfile, torch, ellzero as ez
        >>> model = torch.nn.Linear(2, 2)
        >>> source = ez.export_c(model, tempfile.mkdtemp(), example=torch.zeros(1, 2))
        >>> x = torch.ones(1, 2)
        >>> torch.allclose(ez.compile_c(source)(x), model(x), atol=1e-4)
        True
    """
    if isinstance(flags, str):
        raise InputError(f"flags is {flags!r}; expected a list of texts, such as ['-O2']")
    if isinstance(folder, CSource):
        folder, name = folder.folder, name or folder.name
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; export_c writes it")
    name = name or _only_name(folder)
    header, source = folder / f"{name}.h", folder / f"{name}.c"
    if not header.is_file() or not source.is_file():
        raise InputError(f"there is no {name}.c and {name}.h in {folder}; export_c writes them")
    text = header.read_text(encoding="utf-8", errors="replace")
    inputs, outputs = (_defined(text, name, what) for what in ("INPUTS", "OUTPUTS"))
    weights = None
    if f"#define {name.upper()}_WEIGHTS" in text:
        blob = folder / f"{name}_weights.bin"
        if not blob.is_file():
            raise InputError(f"there is no {blob}, which {name}.c reads its weights from")
        weights = np.fromfile(blob, np.uint8)
    dtype = np.int8 if f"#define {name.upper()}_INPUT_ZERO" in text else np.float32
    return Compiled(load_c(source, compiler, flags), name, inputs, outputs, weights, dtype)


def load_c(source: Path, compiler: str | None = None, flags: Sequence[str] = FLAGS) -> ctypes.CDLL:
    """A C file as a library in memory; nothing of it stays on the disk.

    Raises:
        InputError: there is no compiler; it failed, with the first of its complaints.
    """
    with tempfile.TemporaryDirectory(prefix="ellzero-") as folder:
        library = Path(folder) / f"{source.stem}.so"
        command = [*_compiler(compiler), *flags, "-shared", "-fPIC", str(source), "-lm"]
        done = subprocess.run([*command, "-o", str(library)], capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
            raise InputError(f"{command[0]} failed: {lines[0].strip() or done.returncode}")
        return ctypes.CDLL(str(library))


def _compiler(compiler: str | None) -> list[str]:
    """The C compiler's command, in words: a compiler may come with options, as in "gcc -m32"."""
    wanted = compiler or os.environ.get("CC", "").strip()
    tried = (wanted,) if wanted else COMPILERS
    for candidate in tried:
        if shutil.which(candidate) is not None:
            return [candidate]  # whatever spaces its path has
        try:
            words = shlex.split(candidate)
        except ValueError as error:
            raise InputError(f"the compiler {candidate!r} is no command: {error}") from None
        if words and shutil.which(words[0]) is not None:
            return words
    raise InputError(
        f"no C compiler found (tried {', '.join(tried)}); install gcc or clang, or name one with CC"
    )


def _only_name(folder: Path) -> str:
    names = [path.stem for path in sorted(folder.glob("*.h")) if path.with_suffix(".c").is_file()]
    if len(names) != 1:
        listed = ", ".join(names) if names else "none"
        raise InputError(f"{folder} holds {listed} of export_c's networks; name one with name=")
    return names[0]


def _defined(header: str, name: str, what: str) -> int:
    definition = re.search(rf"^#define {name.upper()}_{what} (\d+)", header, re.MULTILINE)
    if definition is None:
        raise InputError(f"{name}.h defines no {name.upper()}_{what}; export_c did not write it")
    return int(definition[1])
