from importlib import import_module

import pytest

from ellzero.data import DATA_SETS
from ellzero.networks import NETWORKS


@pytest.mark.parametrize("target", [*DATA_SETS.values(), *NETWORKS.values()])
def test_every_built_in_name_leads_to_a_function(target):
    module, function = target.split(":")
    assert callable(getattr(import_module(module), function))
