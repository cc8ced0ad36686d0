"""A copy with zeros around each channel, so that a convolution need not look where it is."""

from __future__ import annotations

from ellzero.c.kernel import Context


def padded(context: Context) -> str:
    """The body of a function that copies its input with zeros above, below, left and right."""
    (_, height, width), (channels, tall, wide) = context.inputs[0], context.shape
    top, left = (tall - height) // 2, (wide - width) // 2
    around = f"for (int i = 0; i < {top * wide + left}; ++i) *y++ = 0.0f;"
    lines = [
        f"for (int c = 0; c < {channels}; ++c) {{",
        f"    {around}",
        f"    for (int row = 0; row < {height}; ++row) {{",
        f"        for (int i = 0; i < {width}; ++i) *y++ = *x++;",
        f"        if (row < {height - 1}) for (int i = 0; i < {2 * left}; ++i) *y++ = 0.0f;",
        "    }",
        f"    {around}",
        "}",
    ]
    return "\n".join(lines)
