"""Constants of generated C in a binary file beside it: large networks then compile in seconds."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ellzero.c.arrays import Array

WeightsIn = Literal["arrays", "blob"]
"""Where weights and other constants lie: in arrays of the C, or in a binary file beside it."""

ALIGNMENT = 4

_POLYNOMIAL = 0xEDB88320  # of zlib's CRC-32


@dataclass(frozen=True)
class Blob:
    """Arrays one behind the other as bytes, least significant byte first, each 4-byte aligned.

    Args:
        content: the bytes.
        offsets: where each array begins, by its name.
        types: the C type of each.
    """

    content: bytes
    offsets: dict[str, int]
    types: dict[str, str]

    @classmethod
    def of(cls, arrays: Iterable[Array]) -> Blob:
        """The bytes of arrays of distinct names."""
        parts, offsets, types, size = [], {}, {}, 0
        for array in arrays:
            values = array.values if array.values.size else np.zeros(1, array.values.dtype)
            part = values.astype(values.dtype.newbyteorder("<")).tobytes()
            part += bytes(-len(part) % ALIGNMENT)
            parts.append(part)
            offsets[array.name], types[array.name] = size, array.c_type
            size += len(part)
        return cls(b"".join(parts), offsets, types)

    def definition(self, array: Array, name: str) -> str:
        """C that stands for an array's definition: its name is where it lies in the file."""
        place = f"{name}_weights + {self.offsets[array.name]}"
        return f"#define {array.name} ((const {self.types[array.name]} *)(const void *)({place}))\n"

    def declared(self, name: str) -> str:
        """What a header says of it."""
        upper = name.upper()
        return f"""
#define {upper}_WEIGHTS {len(self.content)} /* bytes of {name}_weights.bin */

/* Before all else: the bytes of {name}_weights.bin, at an address that 4 divides, where they stay.
   Returns 0, or -1 where they are not those of this network; its functions then return -1. */
int {name}_set_weights(const void *weights, size_t size);
"""

    def defined(self, name: str) -> str:
        """C of the pointer and of the function that sets it."""
        upper = name.upper()
        return f"""static const unsigned char *{name}_weights;

int {name}_set_weights(const void *weights, size_t size)
{{
    const unsigned char *const bytes = weights;
    const uint16_t probe = 1;
    static const uint32_t table[16] = {{
        {", ".join(f"{entry}u" for entry in _table())}
    }};
    uint32_t sum = 0xFFFFFFFFu; /* CRC-32, four bits at a time */
    {name}_weights = NULL;
    if (!weights || size != {upper}_WEIGHTS || (uintptr_t)weights % {ALIGNMENT}) {{
        return -1;
    }}
    if (*(const unsigned char *)&probe != 1) {{
        return -1; /* the most significant byte comes first */
    }}
    for (size_t i = 0; i < size; ++i) {{
        sum ^= bytes[i];
        sum = sum >> 4 ^ table[sum & 15u];
        sum = sum >> 4 ^ table[sum & 15u];
    }}
    if ((sum ^ 0xFFFFFFFFu) != {zlib.crc32(self.content)}u) {{
        return -1;
    }}
    {name}_weights = bytes;
    return 0;
}}
"""


def _table() -> list[int]:
    """What four bits at the end of a sum add to it."""
    entries = list(range(16))
    for _ in range(4):
        entries = [entry >> 1 ^ (_POLYNOMIAL if entry & 1 else 0) for entry in entries]
    return entries


LOAD = """/* The weights, from a file beside the program or from one that is named. */
static int load(int count, char **words)
{{
    const char *const path = count > 1 ? words[1] : "{name}_weights.bin";
    FILE *const file = fopen(path, "rb");
    void *const bytes = malloc({upper}_WEIGHTS);
    const int failed = !file || !bytes || fread(bytes, 1, {upper}_WEIGHTS, file) != {upper}_WEIGHTS
        || fgetc(file) != EOF || {name}_set_weights(bytes, {upper}_WEIGHTS);
    if (file) {{
        fclose(file);
    }}
    if (failed) {{
        free(bytes);
        fprintf(stderr, "%s is not the weights of {name}\\n", path);
    }}
    return failed;
}}
"""
"""C of a program that reads the file; the memory is the system's to free, when the program ends."""
