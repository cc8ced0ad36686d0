"""`ellzero export`, and what takes its files: on a project of one's own."""

import json
import re
import shlex
import sys
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import ellzero as ez
from activation_cases import Own
from ellzero.graph import Network
from ellzero.preview import Form, best_of
from small import blobs, images


@pytest.fixture
def run(ellzero) -> Path:
    """A finished run; no output of its network is constant."""
    half = ("--set", "prune.sparsity=0.5")
    return Path(json.loads(ellzero("run", "mine.toml", "--json", *half).out)["folder"])


def trained(run: Path) -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    return ez.load(run / "model.safetensors", model)


def test_all_three_are_written_and_compute_what_the_run_trained(ellzero, run):
    done = ellzero("export", run, "--ellz", "a.ellz", "--onnx", "a.onnx", "--c", "a", "--json")
    assert (done.code, done.err) == (0, "")
    document = json.loads(done.out)
    x = blobs(20, 7)[0]
    expected = trained(run)(x)
    assert torch.allclose(ez.load("a.ellz")(x), expected, atol=1e-6)
    assert torch.allclose(ez.compile_c("a")(x), expected, atol=1e-4)
    assert document["onnx"]["difference"] < 1e-5
    onnx.checker.check_model(onnx.load("a.onnx"))
    assert document["float32_bytes"] == 4 * (6 * 16 + 16 + 16 * 3 + 3)
    for key, path in (("ellz", "a.ellz"), ("onnx", "a.onnx")):
        assert document[key]["bytes"] == Path(path).stat().st_size


def test_the_table_says_how_to_make_it_smaller_until_it_is(ellzero, run):
    plain = ellzero("export", run, "--ellz", "a.ellz")
    assert (plain.code, plain.err) == (0, "")
    assert "--bits" in plain.out
    small = ellzero("export", run, "--ellz", "b.ellz", "--bits", "2")
    assert "--bits" not in small.out
    assert Path("b.ellz").stat().st_size < Path("a.ellz").stat().st_size
    assert "--bits" not in ellzero("export", "b.ellz", "--ellz", "c.ellz").out


def test_bits_are_those_of_the_packed_weights(ellzero, run):
    assert ellzero("export", run, "--ellz", "a.ellz", "--bits", "2").code == 0
    for name, weight in ez.load("a.ellz").named_parameters():
        if name.endswith("weight"):
            assert len(weight[weight != 0].unique()) <= 4


def test_int8_weights_are_multiples_of_one_scale(ellzero, run):
    assert ellzero("export", run, "--ellz", "a.ellz", "--int8").code == 0
    for name, weight in ez.load("a.ellz").named_parameters():
        if name.endswith("weight"):
            steps = weight / (weight.abs().max() / 127)
            assert torch.allclose(steps, steps.round(), atol=1e-3)


def test_a_network_of_integers_is_packed_and_written_as_c(ellzero, run):
    options = ("--ellz", "a.ellz", "--c", "c", "--activations", "8", "--json")
    document = json.loads(ellzero("export", run, *options).out)
    quantized = document["quantized"]
    assert set(quantized["bits"].values()) == {8}
    assert quantized["validation_score"] >= quantized["validation_score_before"] - 0.1
    network = ez.load("a.ellz")
    assert not list(network.parameters()), "no floats are left"
    x, y = blobs(45, 2)
    score = float((network(x).argmax(1) == y).float().mean())
    assert quantized["validation_score"] == pytest.approx(score)
    header = Path("c/net.h").read_text()
    assert "int net_predict(const int8_t *input, int8_t *output);" in header
    assert f"Score on validation data: {score:.4f}; before it was quantized" in header
    assert {layer["values"] for layer in document["c"]["layers"]} == {"int8"}


def test_a_budget_holds_on_validation_data(ellzero, run):
    options = ("--max-accuracy-drop", "3", "--finetune", "1", "--json")
    found = json.loads(ellzero("export", run, "--ellz", "a.ellz", *options).out)["quantized"]
    assert found["validation_score"] >= found["validation_score_before"] - 0.03 - 1e-9
    assert set(found["bits"]) == {"0.weight", "2.weight"}
    x, y = blobs(45, 2)
    score = float((ez.load("a.ellz")(x).argmax(1) == y).float().mean())
    assert score == pytest.approx(found["validation_score"])


def test_a_packed_file_is_a_model_to_every_command(ellzero, run):
    assert ellzero("export", run, "--ellz", "a.ellz", "--bits", "4").code == 0
    layers = json.loads(ellzero("inspect", "a.ellz", "--json").out)["layers"]
    weights = [p for p in ez.load("a.ellz").parameters() if p.ndim > 1]
    assert [layer["nonzeros"] for layer in layers] == [int(w.count_nonzero()) for w in weights]
    found = json.loads(ellzero("evaluate", "a.ellz", "--data", "own_project:data", "--json").out)
    x, y = blobs(45, 2)
    right = float((ez.load("a.ellz")(x).argmax(1) == y).float().mean())
    assert found["score"] == pytest.approx(right)
    assert ellzero("export", "a.ellz", "--c", "again").code == 0
    assert torch.allclose(ez.compile_c("again")(x), ez.load("a.ellz")(x), atol=1e-4)
    options = ("--set", "model=a.ellz", "--set", "prune.sparsity=0.6", "--json")
    record = json.loads(ellzero("run", "mine.toml", *options).out)
    assert record["status"] == "done"
    assert record["nonzeros"] == round(0.4 * record["weights"])


def test_a_packed_file_alone_does_not_know_its_data(ellzero, run):
    assert ellzero("export", run, "--ellz", "a.ellz").code == 0
    assert "name a data set (--data)" in ellzero("evaluate", "a.ellz").says()
    # in the folder of the run the recipe says it
    assert ellzero("export", run, "--ellz", run / "a.ellz").code == 0
    assert ellzero("evaluate", run / "a.ellz").code == 0


def test_preprocessing_and_classes_go_into_the_files(ellzero, project):
    (project / "pictures.py").write_text(
        "from torch import nn\n"
        "from small import images\n"
        "data = lambda: images(classes=('left', 'right'))\n"
        "network = lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), "
        "nn.Linear(48, 2))\n"
    )
    text = (project / "mine.toml").read_text()
    text = text.replace("own_project:network", "pictures:network")
    (project / "pictures.toml").write_text(text.replace("own_project:data", "pictures:data"))
    record = json.loads(ellzero("run", "pictures.toml", "--json").out)
    assert ellzero("export", record["folder"], "--ellz", "p.ellz", "--c", "p").code == 0
    network = ez.load("p.ellz")
    assert isinstance(network, Network)
    assert network.graph.preprocess == ez.Preprocess(1 / 128, -1.0)
    assert network.graph.classes == ("left", "right")
    assert "left, right" in Path("p/net.h").read_text()
    raw = torch.cat([x for x, _ in images().train.batches(20, torch.device("cpu"))])
    raw = ((raw + 1) * 128).round()  # as the data set holds them
    prepared = raw.float() / 128 - 1
    assert torch.allclose(ez.compile_c("p")(raw), network(prepared), atol=1e-4)


SUMS = (
    "from torch import nn\n"
    "class Sums(nn.Module):\n"
    "    def forward(self, x):\n"
    "        return x.cumsum(1)\n"
)


@pytest.mark.filterwarnings("always::ellzero.EllzeroWarning")
@pytest.mark.parametrize("summed", [False, True])
def test_a_dead_layer_is_said_once(summed, ellzero, run, project):
    """With the counts of the network as given, whatever was cut off it before it is written."""
    model = trained(run)
    with torch.no_grad():
        model.get_parameter("2.weight").zero_()
    if summed:  # it cannot be compacted, and no C is to be had
        assert isinstance(model, nn.Sequential)
        model.append(Own(lambda x: x.cumsum(1)))
        (project / "summed.py").write_text(
            SUMS + "network = lambda: nn.Sequential("
            "nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3), Sums())\n"
        )
        text = (project / "mine.toml").read_text().replace("own_project:network", "summed:network")
        (run / "recipe.toml").write_text(text)
    ez.save(model, run / "model.safetensors")
    files = ("--ellz", "d.ellz", "--onnx", "d.onnx", *(() if summed else ("--c", "d")))
    (line,) = ellzero("export", run, "--trust", *files).err.splitlines()
    assert line.startswith("ellzero: warning: 2.weight has 0 of 48 weights left")


def test_nothing_is_overwritten_unasked(ellzero, run):
    Path("mine.ellz").write_text("mine")
    assert "overwrite it (--overwrite)" in ellzero("export", run, "--ellz", "mine.ellz").says()
    assert Path("mine.ellz").read_text() == "mine"
    assert ellzero("export", run, "--ellz", "mine.ellz", "--overwrite").code == 0
    assert ez.load("mine.ellz")
    assert ellzero("export", run, "--c", "c").code == 0
    before = Path("c/net.c").read_bytes()
    assert "c/net.h is there already" in ellzero("export", run, "--c", "c").says()
    second = ("export", run, "--c", "c", "--name", "other")
    assert "c/README.md is there already; leave it out (--package" in ellzero(*second).says()
    assert ellzero(*second, "--package", "source").code == 0
    assert Path("c/net.c").read_bytes() == before


def test_without_a_destination_every_form_is_shown_and_nothing_is_written(ellzero, run):
    before = sorted(Path().rglob("*"))
    done = ellzero("export", run, "--json")
    assert (done.code, done.err) == (0, "")
    assert sorted(Path().rglob("*")) == before
    found = json.loads(done.out)
    forms = {form["name"]: form for form in found["forms"]}
    assert list(forms) == ["dense", "compacted", "8 bits", "5 bits", "4 bits", "integers"]
    x, y = blobs(45, 2)
    small, dense = trained(run), ez.open_run(run).reference
    assert dense is not None
    scores = [float((network(x).argmax(1) == y).float().mean()) for network in (small, dense)]
    assert forms["compacted"]["evaluation"][0] == pytest.approx(scores[0])
    assert forms["compacted"]["worse"] == pytest.approx(100 * (scores[1] - scores[0]))
    # the command that is named writes what the table says
    assert found["command"].startswith(f"ellzero export {run} ")
    assert ellzero(*shlex.split(found["command"])[1:]).code == 0
    assert Path("net.ellz").stat().st_size == found["best"]["packed_bytes"]
    chosen = [form for form in found["forms"] if form["options"] is not None]
    written = {
        form["name"]: json.loads(
            ellzero("export", run, *form["options"], "--onnx", f"{number}.onnx", "--c",
                    f"c{number}", "--json").out
        )
        for number, form in enumerate(chosen)
    }  # fmt: skip
    for name, files in written.items():
        assert forms[name]["flash_bytes"] == files["c"]["bytes"]
        assert forms[name]["ram_bytes"] == files["c"]["scratch_bytes"]
        assert forms[name]["onnx_bytes"] == files["onnx"]["bytes"]
        assert 0 < forms[name]["latency_s"] < 1e-2


def test_the_table_of_forms_for_people(ellzero, run):
    done = ellzero("export", run)
    assert (done.code, done.err) == (0, "")
    assert re.search(r"4 bits .* B .* kB .* B ", done.out)
    assert "error, %" in done.out
    assert "Write it by\nellzero export runs/mine-1 " in done.out
    table = [line for line in done.out.splitlines() if line.startswith("│")]
    assert len(table) == 6
    assert max(map(len, table)) <= 80, "it fits a terminal"


@pytest.mark.parametrize(
    ("errors", "best"),
    [
        # of 100 answers that compacted has right; two standard errors of 4 are 3.9
        ({"8 bits": 0, "5 bits": 3, "4 bits": 9}, "5 bits"),
        ({"8 bits": 9, "5 bits": 9, "4 bits": 9}, "compacted"),
        ({"8 bits": 0, "5 bits": 0, "4 bits": 0}, "4 bits"),
    ],
)
def test_the_smallest_form_within_the_noise_is_the_one_to_take(errors, best):
    sizes = {"compacted": 400, "8 bits": 300, "5 bits": 200, "4 bits": 100}
    forms, answers = [Form("dense", None, packed_bytes=50)], {}
    for name, size in sizes.items():
        right = torch.ones(100, dtype=torch.bool)
        right[: errors.get(name, 0)] = False
        answers[name] = right
        options = () if name == "compacted" else ("--bits", name[0])
        score = ez.Evaluation(float(right.float().mean()), 0.1)
        forms.append(Form(name, options, packed_bytes=size, evaluation=score))
    found, _ = best_of(forms, answers)
    assert found is not None
    assert found.name == best


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--bits", "4"), "nothing to write"),
        (("--c", "c", "--name", "2fast"), "expected a C identifier"),
        (("--c", "a/b/c"), "there is no folder a/b"),
        (("--ellz", "a/b.ellz"), "there is no folder a"),
        (("--ellz", "a.ellz", "--bits", "9"), "bits (--bits) is 9"),
        (("--ellz", "a.ellz", "--bits", "4", "--data", "x"), "data (--data) are for a budget"),
        (("--ellz", "a.ellz", "--name", "own"), "name (--name), storage (--storage), weights"),
        (("--ellz", "a.ellz", "--bits", "3", "--int8"), "give one"),
        (("--ellz", "a.ellz", "--finetune", "2"), "none of the four ways to quantize"),
        (("--ellz", "a.ellz", "--bits", "4", "--finetune", "-1"), "(--finetune) is -1"),
        (("--ellz", "a.ellz", "--activations", "4"), "activations (--activations) is 4"),
        (("--ellz", "a.ellz", "--activations", "8", "--finetune", "-1"), "(--finetune) is -1"),
        (("--c", "c", "--c-weights", "blob", "--activations", "8"), "leave --c-weights out"),
        (("--c", "c", "--c-weights", "blob", "--activations", "8"), "weights in arrays"),
        (("--ellz", "a.ellz", "--max-accuracy-drop", "-1"), "max_accuracy_drop"),
        (("--ellz", "same", "--onnx", "same"), "two of the outputs are one path"),
        (("--ellz", "same/../a", "--onnx", "a"), "there is no folder same"),
        (("--ellz", "runs"), "runs is a folder"),
        (("--ellz", "a.ellz", "--c", "mine.toml"), "mine.toml is a file"),
        (("--ellz", "a.ellz", "--c", "c", "--name", "a b"), "expected a C identifier"),
        (("--ellz", "a.ellz", "--onnx", "a/b.onnx"), "there is no folder a"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(options, expected, ellzero, run, project):
    before = sorted(project.rglob("*"))
    assert expected in ellzero("export", run, *options).says()
    assert sorted(project.rglob("*")) == before


@pytest.fixture
def sums(ellzero, project) -> Path:
    """A run of a network that has a layer which is no data."""
    sys.modules.pop("sums", None)  # that of another test's project
    (project / "sums.py").write_text(
        SUMS + "network = lambda: nn.Sequential(nn.Linear(6, 8), Sums(), nn.Linear(8, 3))\n"
    )
    text = (project / "mine.toml").read_text().replace("own_project:network", "sums:network")
    (project / "sums.toml").write_text(text)
    return Path(json.loads(ellzero("run", "sums.toml", "--json").out)["folder"])


def test_what_there_is_no_c_for_is_named_before_anything_is_written(ellzero, sums):
    line = ellzero("export", sums, "--ellz", "a.ellz", "--c", "c").says()
    assert "cumsum" in line
    assert not Path("a.ellz").exists()
    assert not Path("c").exists()


def test_weights_alone_are_a_model_beside_their_recipe(ellzero, sums):
    file = sums / "w.ellz"
    done = ellzero("export", sums, "--ellz", file)
    assert (done.code, done.err) == (0, "")
    assert "(aten.cumsum.default, " in done.out
    assert "is code: of it the packed file holds the name alone" in " ".join(done.out.split())
    assert ellzero("export", file, "--onnx", "w.onnx").code == 0
    assert ellzero("inspect", file).code == 0
    assert ellzero("evaluate", file).code == 0
    assert "lacks the code of" in ellzero_elsewhere(ellzero, file)


def ellzero_elsewhere(ellzero, file: Path) -> str:
    alone = Path("alone.ellz")
    alone.write_bytes(file.read_bytes())
    return ellzero("export", alone, "--onnx", "x.onnx").says()


def test_a_recipe_is_asked_for_where_a_packed_file_is_given(ellzero, run):
    assert ellzero("export", run, "--ellz", "a.ellz").code == 0
    assert "--set model=a.ellz" in ellzero("run", "a.ellz").says()


@pytest.mark.parametrize("content", [b"", b"FLLZ and more"])
def test_a_file_that_does_not_begin_as_packed_ones_do(content, ellzero, project):
    Path("a.ellz").write_bytes(content)
    assert "a.ellz is no packed file" in ellzero("inspect", "a.ellz").says()


def test_data_that_are_preprocessed_otherwise_are_refused(ellzero, run):
    network = ez.trace(trained(run), torch.zeros(1, 6), preprocess=ez.Preprocess(5.0, 7.0))
    ez.pack(network, "a.ellz")
    line = ellzero("evaluate", "a.ellz", "--data", "own_project:data").says()
    assert "a.ellz preprocesses by Preprocess(scale=5.0, shift=7.0)" in line


def test_a_damaged_packed_file_is_one_line(ellzero, run):
    assert ellzero("export", run, "--ellz", "a.ellz").code == 0
    content = bytearray(Path("a.ellz").read_bytes())
    content[len(content) // 2] ^= 4
    Path("a.ellz").write_bytes(bytes(content))
    for command in ("inspect", "evaluate", "bench"):
        assert "a.ellz" in ellzero(command, "a.ellz").says()
    assert "a.ellz" in ellzero("run", "mine.toml", "--set", "model=a.ellz").says()
