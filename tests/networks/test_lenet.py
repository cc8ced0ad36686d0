import pytest
import torch
from torch import nn

from ellzero.networks.lenet import lenet_5_caffe, lenet_300_100

SHAPES = {
    lenet_300_100: {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)},
    lenet_5_caffe: {
        "conv1": (20, 1, 5, 5),
        "conv2": (50, 20, 5, 5),
        "fc1": (500, 800),
        "fc2": (10, 500),
    },
}
WEIGHT_COUNTS = {lenet_300_100: 266_200, lenet_5_caffe: 430_500}  # as papers report them

both = pytest.mark.parametrize("make", SHAPES, ids=lambda make: make.__name__)


@both
def test_keys_and_shapes_are_the_published_ones(make):
    expected = {}
    for layer, shape in SHAPES[make].items():
        expected |= {f"{layer}.weight": shape, f"{layer}.bias": shape[:1]}
    state = make(dropout=0.5, input_dropout=0.2).state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == expected
    weights = (tensor.numel() for key, tensor in state.items() if key.endswith("weight"))
    assert sum(weights) == WEIGHT_COUNTS[make]


def by_hand(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The network's output from its published description, by matrix products alone."""
    state = network.state_dict()
    if "conv1.weight" in state:
        for layer in ("conv1", "conv2"):
            patches = x.unfold(2, 5, 1).unfold(3, 5, 1)  # (N, channels, H-4, W-4, 5, 5)
            weight, bias = state[f"{layer}.weight"], state[f"{layer}.bias"]
            x = torch.einsum("nchwij,ocij->nohw", patches, weight) + bias.view(1, -1, 1, 1)
            x = x.clamp(min=0).unfold(2, 2, 2).unfold(3, 2, 2).amax((-2, -1))
    x = x.flatten(1)
    layers = [key.removesuffix(".weight") for key in state if key.startswith("fc") and "w" in key]
    for layer in layers:
        x = x @ state[f"{layer}.weight"].T + state[f"{layer}.bias"]
        if layer != layers[-1]:
            x = x.clamp(min=0)
    return x


@both
def test_computes_what_its_description_says(make):
    torch.manual_seed(0)
    network, x = make().double(), torch.randn(3, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(network(x), by_hand(network, x), rtol=1e-10, atol=1e-10)


def test_lenet_300_100_takes_flat_images_too():
    network, x = lenet_300_100(), torch.randn(3, 1, 28, 28)
    assert network(x).equal(network(x.flatten(1)))


@both
@pytest.mark.parametrize("where", ["dropout", "input_dropout"])
def test_dropout_acts_in_training_only(make, where):
    torch.manual_seed(0)
    network, x = make(**{where: 0.5}), torch.randn(3, 1, 28, 28)
    assert not network(x).equal(network(x))
    network.eval()
    assert network(x).equal(network(x))
    without = make()
    without.load_state_dict(network.state_dict())
    assert network(x).equal(without(x))
