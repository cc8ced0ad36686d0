"""What every built-in network promises: a new one needs a case in `network_cases.py`."""

import pytest
import torch

import ellzero as ez
from ellzero.factories import build_model
from ellzero.networks import NETWORKS
from ellzero.recipe import Factory
from network_cases import NETWORK_CASES

every = pytest.mark.parametrize("name", NETWORKS)


def made(name: str, seed: int = 0) -> torch.nn.Module:
    return build_model(Factory(name=name, **NETWORK_CASES[name].options), seed)


@every
def test_a_seed_gives_the_same_weights_and_another_others(name):
    first, second, other = made(name, 1), made(name, 1), made(name, 2)
    same = [a.equal(b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert not all(a.equal(b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@every
def test_the_output_is_finite_and_a_gradient_reaches_every_parameter(name):
    torch.manual_seed(0)
    case, network = NETWORK_CASES[name], made(name)
    output = network(case.batch(3))
    assert output.shape == (3, *case.outputs)
    assert output.isfinite().all()
    (output * torch.randn_like(output)).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@every
def test_an_example_does_not_depend_on_the_others_of_its_batch_in_evaluation(name):
    torch.manual_seed(0)
    network, batch = made(name).double().eval(), NETWORK_CASES[name].batch(3)
    if batch.is_floating_point():
        batch = batch.double()
    torch.testing.assert_close(network(batch)[1:2], network(batch[1:2]))


SLOW = {"mobilenet-v1-025", "resnet-20", "resnet-50"}
exported = [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
    for name in NETWORKS
    if name != "gpt-small"  # which has a test of its own, with any number of tokens
]


# a GRU keeps its weights in a list as well, which export fills with its own
@pytest.mark.filterwarnings("ignore:The tensor attributes self.gru._flat_weights")
@pytest.mark.parametrize("name", exported)
def test_can_be_exported_with_any_batch_size(name):
    network, case = made(name).eval(), NETWORK_CASES[name]
    any_batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network, (case.batch(2),), dynamic_shapes=any_batch)
    x = case.batch(3)
    torch.testing.assert_close(program.module()(x), network(x))


@every
def test_a_file_gives_it_back(name, tmp_path):
    network, x = made(name).eval(), NETWORK_CASES[name].batch(2)
    ez.save(network, tmp_path / "network.safetensors")
    loaded = ez.load(tmp_path / "network.safetensors", made(name, seed=1))
    assert loaded.eval()(x).equal(network(x))


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"autoencoder"}))  # has no classes
def test_the_number_of_classes_is_an_option(name):
    option = "vocabulary" if name == "gpt-small" else "classes"
    factory = Factory(name=name, **{**NETWORK_CASES[name].options, option: 4})
    assert build_model(factory, 0).eval()(NETWORK_CASES[name].batch(2) % 4).shape[-1] == 4
