"""What every operation of a traced network says of itself."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor, fx

from ellzero.c.kernel import Context, Expressions
from ellzero.errors import InputError
from ellzero.operations.axes import Axes, letters
from ellzero.operations.call import Call
from ellzero.operations.layout import Layout
from ellzero.tensors import Shape

LayerKind = Literal["dense", "conv", "recurrent"]

CForm = Literal["none", "same", "value", "body"]
"""How an operation is written as C:

- none: it is not, and a network that has it is refused by its name;
- same: nothing is to be done, for its result lies in memory as its input does;
- value: as expressions of a value (`c_value`), on its own or on what the kernel before it stores;
- body: as the body of a function (`c_body`).
"""


COPY = 4
"""Multiply-adds that take about as long as a copy of one value."""

FUNCTION = 16
"""Multiply-adds that take about as long as a function of one value, such as an exponential."""


@dataclass(frozen=True)
class Recognized:
    """What a call is, said as an operation.

    Args:
        operation: what is to be done; None where the values stay, and only lie in another way.
        inputs: arguments of the call, or what has to be done before.
        weights: by role, arguments of the call, or new tensors, named after call and role; None
            is left out.
        name: the node's; by default that of the module that makes the call.
        layout: where the batch lies in the result; by default it is as in the first argument.
        part: of a call that gives a tuple, which of its results this is.
    """

    operation: Operation | None
    inputs: Sequence[fx.Node | Recognized]
    weights: Mapping[str, fx.Node | Tensor | None] = field(default_factory=dict)
    name: str | None = None
    layout: Layout | None = None
    part: int = 0


Recognizer = Callable[[Call], Recognized | fx.Node | None]
"""Says what a call is: an operation, a value that it gives on unchanged, or None, nothing known."""


class Operation(BaseModel):
    """One operation: its settings are its fields; its weights are given to it by role.

    All that is known of an operation is in its class, and `OPERATIONS` lists the classes. What a
    class does not declare is taken for the worst case: channels do not pass, its weights are no
    layer's, there is no C.

    Raises:
        InputError: where a class is made that declares what it has not, or in unknown words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    kind: Any  # each operation's own literal
    REQUIRED: ClassVar[tuple[str, ...]] = ()
    """Roles of the weights that it must have."""
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    """Roles of the weights that it may have."""
    INTEGERS: ClassVar[Mapping[str, torch.dtype]] = {}
    """Of weights that are not floats their type, by role."""
    ARITY: ClassVar[int | None] = 1
    """How many inputs it reads; None for any number."""
    ANY_LAYOUT: ClassVar[bool] = False
    """Whether its recognizers work wherever the batch lies in what a call reads (`Call.layout`).
    Those of the others are asked only where it comes first."""
    ELEMENTWISE: ClassVar[bool] = False
    """Whether a value depends on nothing but the inputs' values at its place and its channel's
    weights."""
    FOLLOWS: ClassVar[bool] = False
    """Whether `run` makes NaN of whatever depends on a NaN. Compaction then finds out which values
    are constant by running it, with NaN in place of those that are not."""
    LAYER: ClassVar[LayerKind | None] = None
    """The kind of its required weights if it is a layer; `repeats` says how often each entry
    multiplies an input."""
    C: ClassVar[CForm] = "none"
    FINISHES: ClassVar[bool] = False
    """Whether its C stores every value by `Context.finish`, so that what comes after can be done
    before that."""
    IN_PLACE: ClassVar[bool] = False
    """Whether its C has read an input's value for the last time when it stores at its place."""
    PER_VALUE: ClassVar[int | None] = None
    """Multiply-adds, or as much time, for each value that it reads or gives, where that is its
    work; see `FUNCTION` and `work`."""
    VIEW: ClassVar[bool] = False
    """Whether what `run` gives may be a view, which keeps the memory of what it is of."""

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Check what a class declares when it is made: compaction and C take its word for it."""
        super().__pydantic_init_subclass__(**options)
        for what, words in (("C", CForm), ("LAYER", LayerKind)):
            word, known = getattr(cls, what), get_args(words)
            if word not in known and not (what == "LAYER" and word is None):
                raise InputError(f"{cls.__name__}: {what} is {word!r}; expected {', '.join(known)}")
        if cls.LAYER is not None and not cls.REQUIRED:
            raise InputError(f"{cls.__name__}: a layer has weights; name them in REQUIRED")
        method = {"value": "c_value", "body": "c_body"}.get(cls.C)
        if method is not None and getattr(cls, method) is getattr(Operation, method):
            raise InputError(f"{cls.__name__}: C is {cls.C!r}, but it defines no {method}")

    @model_serializer(mode="wrap")
    def _with_kind(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # the kind is each class's default, but it must not be left out with the other defaults
        return {"kind": self.kind, **plain(self)}

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        """The calls of torch that may be this operation, and who says whether one is."""
        return {}

    def run(self, inputs: Sequence[Any], weights: Mapping[str, Tensor]) -> Any:
        """The operation on a batch. What it calls of torch is what an ONNX file says, too."""
        raise NotImplementedError

    @abstractmethod
    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        """Shape of one example's result.

        Raises:
            InputError: shapes that do not go together.
        """

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        """How its axes go together; None where nothing is known, so that all of them stay whole."""
        return None

    def why_whole(self) -> str:
        """Why axes that it reads or gives stay whole, as the end of a sentence."""
        return "it does not say how its axes go together"

    def sees(self, weights: Mapping[str, Tensor]) -> Tensor | bool:
        """Which indices of the first axis matter to it, where it follows constants.

        Of a channel that a weight of zero hides the result is known, whatever its values are.
        """
        return True

    def known(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """Where it follows constants: what `run` gives for inputs that are NaN where not known."""
        return self.run(inputs, weights)

    def folds_constants(self) -> bool:
        """Where a weight reads: whether a bias can stand for what constants add.

        It can if their weights add the same at every place, which a padding with zeros prevents.
        """
        return False

    def repeats(self, inputs: Sequence[Shape], output: Shape) -> int:
        """Of a layer: how often each entry of its weights multiplies an input, for one example."""
        return math.prod(output[1:])

    def work(self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape) -> int:
        """Multiply-adds for one example, and for what is none as many as take that time.

        They bound how long a file of somebody else may take. Of a class that says nothing of them
        every value is made of all that it reads.
        """
        values = sum(map(math.prod, inputs)) + math.prod(output)
        if self.PER_VALUE is not None:
            return self.PER_VALUE * values
        if self.LAYER is not None:
            entries = sum(math.prod(weights[role]) for role in self.REQUIRED)
            return values + entries * self.repeats(inputs, output)
        read = sum(map(math.prod, (*inputs, *weights.values())))
        return math.prod(output) * read

    def workspace(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> int:
        """Values that `run` needs memory for beside what it reads and gives, for one example."""
        return sum(map(math.prod, inputs)) + math.prod(output)

    def narrowed(self, kept: Mapping[str, int], output: Shape) -> Operation:
        """The same operation where of each name so many indices are left.

        Args:
            kept: how many, by name.
            output: shape of one example of what is then its result.
        """
        return self

    def c_value(self, v: str, weights: Mapping[str, str]) -> Expressions:
        """C expression of what it makes of a value, or several: the next ones are of `v`.

        Args:
            v: C expression of the value.
            weights: by role, C expressions of the channel's weights.
        """
        raise NotImplementedError

    def c_body(self, context: Context) -> str:
        """C that reads `x` (and `x2`, `x3` ...), float arrays, and stores `y`."""
        return context.each_value(lambda at: self.c_value(f"x{at('c')}", context.of_channel("c")))

    def c_state(self, output: Shape) -> int:
        """Floats `state` that its C keeps from step to step, zeros at first."""
        return 0

    def c_work(self, output: Shape) -> int:
        """Floats `work` that its C works in, of any value at first."""
        return 0

    def c_lacks(self) -> str:
        """What of it C lacks, as the end of a sentence, " in 3 dimensions"; "" for nothing."""
        return ""

    def c_padding(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        """Zeros that its C expects around each channel: before and after those of each axis."""
        return ()


class Elementwise(Operation):
    """An operation of one value at a time: `run` and `c_value` say which."""

    ELEMENTWISE: ClassVar[bool] = True
    FOLLOWS: ClassVar[bool] = True
    C: ClassVar[CForm] = "value"
    FINISHES: ClassVar[bool] = True
    IN_PLACE: ClassVar[bool] = True
    PER_VALUE: ClassVar[int | None] = FUNCTION

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        return inputs[0]

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        names = letters(len(output))
        return Axes((names,), names, dict.fromkeys(weights, names[:1]))

    @abstractmethod
    def c_value(self, v: str, weights: Mapping[str, str]) -> Expressions: ...
