"""Options that several commands share, each with its line of help."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Flag = Annotated[bool, Parameter(negative=())]

Json = Annotated[
    bool,
    Parameter(name="--json", negative=(), help="Print one JSON document instead of text."),
]

Trust = Annotated[
    bool,
    Parameter(
        negative=(),
        help="Run the code that the folder's recipe names (package.module:name), and a packed "
        "file's network however much work and memory it asks for; a run that you began in this "
        "folder needs no such word.",
    ),
]

Model = Annotated[Path, Parameter(help="Run folder, a .safetensors in one, or a packed file.")]

DataRoot = Annotated[
    Path | None, Parameter(help="Folder that holds data sets, each in a folder of its name.")
]
