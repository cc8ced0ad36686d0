"""Projects to begin with: a commented recipe, a network, and data where the user has none yet."""

from ellzero.projects.start import KINDS as KINDS
from ellzero.projects.start import RECIPE as RECIPE
from ellzero.projects.start import Started as Started
from ellzero.projects.start import start as start
