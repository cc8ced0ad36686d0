"""Pictures as files: on white, so that their ink is readable on a page of any colour."""

from pathlib import Path


def write(path: Path, picture: str) -> None:
    """Write an SVG element of `ellzero.report.style.svg` as a file."""
    on_white = picture.replace(">", '><rect width="100%" height="100%" fill="white"/>', 1)
    path.write_text(on_white + "\n")
