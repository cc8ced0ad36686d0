"""What lies around the C of a network: how it is built, called and tested; an Arduino library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import ellzero
from ellzero.errors import InputError

Package = Literal["source", "project", "arduino"]

AROUND = ("README.md", "Makefile", "CMakeLists.txt", "library.properties")
"""Files that are of no network's name, so that a folder may have them already."""


@dataclass(frozen=True)
class Facts:
    """What is said of the C beside it.

    Args:
        name: of the files and functions.
        of_integers: whether it computes in integers.
        constant_bytes: of all constant arrays.
        scratch_bytes: of working memory.
        remark: on which data it was measured; "" if nowhere.
        reads_blob: whether its weights lie in a file of their own.
    """

    name: str
    of_integers: bool
    constant_bytes: int
    scratch_bytes: int
    remark: str
    reads_blob: bool = False

    @property
    def macro(self) -> str:
        """What the names of its macros begin with."""
        return self.name.upper()


def check_package(package: str) -> None:
    """Make sure that there is such a package.

    Raises:
        InputError: there is none.
    """
    if package not in get_args(Package):
        raise InputError(f"package is {package!r}; expected 'source', 'project' or 'arduino'")


def paths_of(name: str, package: Package, *, blob: bool = False) -> list[str]:
    """The files of a package, within its folder.

    Example:
        >>> paths_of("net", "source")
        ['net.h', 'net.c', 'net_test.c']
    """
    files = [f"{name}.h", f"{name}.c", f"{name}_test.c"]
    files += [f"{name}_weights.bin"] * blob
    around = dict.fromkeys(PACKAGES[package](_nothing(name)), "")
    return [_place(file, package) for file in files] + list(around)


def packaged(files: Mapping[str, str], facts: Facts, package: Package) -> dict[str, str]:
    """The files of the C where they belong, and those around them.

    Raises:
        InputError: a blob in an Arduino library, whose sketches have no files.
    """
    if package == "arduino" and facts.reads_blob:
        raise InputError(
            "an Arduino library has its weights in arrays; leave weights='blob' (--c-weights) out"
        )
    placed = {_place(file, package): text for file, text in files.items()}
    return placed | PACKAGES[package](facts)


def _place(file: str, package: Package) -> str:
    if package != "arduino":
        return file
    # what lies in src is all compiled, so a program of its own does not belong there
    return f"extras/{file}" if file.endswith("_test.c") else f"src/{file}"


def _nothing(name: str) -> Facts:
    return Facts(name, False, 0, 0, "")


def _source(_: Facts) -> dict[str, str]:
    return {}


def _project(facts: Facts) -> dict[str, str]:
    return {
        "README.md": _readme(facts, _BUILD.format(name=facts.name)),
        "Makefile": _makefile(facts),
        "CMakeLists.txt": _cmake(facts),
    }


def _arduino(facts: Facts) -> dict[str, str]:
    name = facts.name
    properties = {
        "name": name,
        "version": "1.0.0",
        "author": "ellzero",
        "maintainer": "ellzero",
        "sentence": f"The neural network {name}.",
        "paragraph": facts.remark or "A network that was made small.",
        "category": "Data Processing",
        "url": "https://docs.arduino.cc/libraries/",
        "architectures": "*",
        "includes": f"{name}.h",
    }
    return {
        "README.md": _readme(facts, _LIBRARY.format(name=name)),
        "library.properties": "".join(f"{key}={text}\n" for key, text in properties.items()),
        f"examples/{name}/{name}.ino": _sketch(facts),
    }


PACKAGES: dict[Package, Callable[[Facts], dict[str, str]]] = {
    "source": _source,
    "project": _project,
    "arduino": _arduino,
}
"""What makes the files around the C, of each package."""

_BUILD = """    make            # lib{name}.a
    make test       # builds and runs {name}_test.c: 0 if the outputs are PyTorch's

With CMake, `add_subdirectory` of this folder and `target_link_libraries(your_program {name})`.
"""

_LIBRARY = """Copy this folder into the `libraries` folder of your sketchbook; the IDE then
lists `{name}` among
its examples. extras/{name}_test.c is a program for a desktop: it compares the outputs with
PyTorch's.
"""


def _readme(facts: Facts, build: str) -> str:
    name, macro = facts.name, facts.macro
    if facts.of_integers:
        types = f"int8_t input[{macro}_INPUTS], output[{macro}_OUTPUTS];"
        fill = f"{name}_input_from_floats(values, input); /* raw values, as many floats */\n"
        meaning = (
            f"\nAn output is worth `{macro}_OUTPUT_SCALE * (output[i] - {macro}_OUTPUT_ZERO)`.\n"
            f"Apart from `{name}_input_from_floats` all is integer arithmetic; `{macro}_NO_FLOAT`\n"
            "leaves that function out.\n"
        )
    else:
        types = f"float input[{macro}_INPUTS], output[{macro}_OUTPUTS];"
        fill, meaning = "/* raw values into input: preprocessing is compiled in */\n", ""
    if facts.reads_blob:
        fill += f"{name}_set_weights(bytes, size); /* {name}_weights.bin, once */\n"
    accuracy = facts.remark or "Not measured when this was written."
    return f"""# {name}

A neural network as C99, written by ellzero {ellzero.__version__}.

```c
#include "{name}.h"

{types}
{fill}int best = {name}_predict(input, output); /* index of the largest output */
```
{meaning}
- Flash: {facts.constant_bytes:,} bytes of constants; code comes on top.
- RAM: {facts.scratch_bytes:,} bytes of working memory, beside input, output and a small stack.
  `{name}_predict_in` takes that memory from you.
- Accuracy: {accuracy}

{build}"""


def _makefile(facts: Facts) -> str:
    name = facts.name
    return f"""# The network {name}, written by ellzero {ellzero.__version__}.
CC ?= cc
AR ?= ar
CFLAGS ?= -std=c99 -O2 -ffp-contract=fast

.PHONY: test clean

lib{name}.a: {name}.o
	$(AR) rcs $@ $<

{name}.o: {name}.c {name}.h
	$(CC) $(CFLAGS) -c {name}.c -o $@

test: {name}_test
	./{name}_test

{name}_test: {name}_test.c lib{name}.a
	$(CC) $(CFLAGS) {name}_test.c lib{name}.a -lm -o $@

clean:
	rm -f {name}.o lib{name}.a {name}_test
"""


def _cmake(facts: Facts) -> str:
    name = facts.name
    return f"""# The network {name}, written by ellzero {ellzero.__version__}.
cmake_minimum_required(VERSION 3.13)
project({name} C)

add_library({name} STATIC {name}.c)
target_include_directories({name} PUBLIC ${{CMAKE_CURRENT_SOURCE_DIR}})
set_target_properties({name} PROPERTIES C_STANDARD 99)
if(NOT MSVC)
    target_link_libraries({name} PUBLIC m)
endif()

include(CTest)
if(BUILD_TESTING)
    add_executable({name}_test {name}_test.c)
    target_link_libraries({name}_test {name})
    add_test(NAME {name} COMMAND {name}_test WORKING_DIRECTORY ${{CMAKE_CURRENT_SOURCE_DIR}})
endif()
"""


def _sketch(facts: Facts) -> str:
    name, macro = facts.name, facts.macro
    value = "int8_t" if facts.of_integers else "float"
    fill = (
        f"{name}_input_from_floats of your values, or int8 of your own, into input"
        if facts.of_integers
        else "your raw values into input"
    )
    return f"""// The network {name}: the index of its largest output, once a second.
#include <{name}.h>

static {value} input[{macro}_INPUTS], output[{macro}_OUTPUTS];

void setup() {{
  Serial.begin(115200);
}}

void loop() {{
  // {fill}
  Serial.println({name}_predict(input, output));
  delay(1000);
}}
"""
