"""The command line in a project of a user's."""

from command_line import ellzero, project

__all__ = ["ellzero", "project"]
