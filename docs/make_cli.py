"""Write docs/cli.md from the command line's own help: `python docs/make_cli.py`."""

from pathlib import Path

from ellzero.cli.app import app

CLI = Path(__file__).with_name("cli.md")


def text() -> str:
    """What docs/cli.md holds."""
    return app.generate_docs()


if __name__ == "__main__":
    CLI.write_text(text(), encoding="utf-8")
