"""`python -m ellzero` is the same as `ellzero`."""

from ellzero.cli import main

main()
