"""The figures of docs/networks.md are the networks' own."""

import re
import tomllib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from ellzero.factories import build_model
from ellzero.measure.macs import layer_costs
from ellzero.networks import NETWORKS
from ellzero.networks.vgg import vgg_small
from ellzero.recipe import Factory
from network_cases import NETWORK_CASES, parameter_count

PAGE = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
ROWS = {
    name: [cell.strip() for cell in cells.split("|")]
    for name, cells in re.findall(r"^\| `(.*?)` \| (.*) \|$", PAGE, re.MULTILINE)
}

pytestmark = pytest.mark.filterwarnings("ignore:embeddings are not selected")


def by_speed(quick: set[str]) -> pytest.MarkDecorator:
    slow = pytest.mark.slow
    names = [pytest.param(name, marks=() if name in quick else slow) for name in NETWORKS]
    return pytest.mark.parametrize("name", names)


def made(name: str) -> nn.Module:
    return build_model(Factory(name=name), 0).eval()


def batch(name: str, text: str) -> Tensor:
    """Two examples of a shape such as "(N, T, 40)"."""
    shape = sizes(name, text)
    return torch.zeros(shape, dtype=torch.int64 if name == "gpt-small" else torch.float32)


def sizes(name: str, text: str) -> tuple[int, ...]:
    known = {"N": 2, "T": {"audio-gru": 61, "gpt-small": 128}.get(name, 0)}
    return tuple(known.get(size) or int(size) for size in text.strip("()").split(", "))


def test_every_network_has_a_row_and_a_case():
    assert ROWS.keys() == NETWORKS.keys() == NETWORK_CASES.keys()


def test_its_recipe_names_a_network_with_options():
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    network = build_model(Factory(**tomllib.loads(text)["model"]), 0)
    assert parameter_count(network) == parameter_count(vgg_small(width=8))


@by_speed(set(NETWORKS) - {"resnet-50"})
def test_shapes_and_counts(name):
    given, gives, parameters, weights, *_ = ROWS[name]
    network = made(name)
    assert network(batch(name, given)).shape == sizes(name, gives)
    assert f"{parameter_count(network):,}" == parameters
    assert f"{ez.select(network).numel:,}" == weights


@by_speed({"lenet-300-100", "lenet-5-caffe", "autoencoder"})
def test_multiply_adds(name):
    network = made(name)
    costs = layer_costs(ez.trace(network, batch(name, ROWS[name][0])))
    assert f"{sum(cost.macs for cost in costs):,}" == ROWS[name][4]
