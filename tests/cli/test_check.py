"""`ellzero check`: what a run would be, told before it is started; what is wrong, told at once."""

import json
from pathlib import Path

import pytest

SLEEP = 0.02

SLOW = f"""
import time
import own_project

def network():
    model = own_project.network()
    model.register_forward_pre_hook(lambda *_: time.sleep({SLEEP}))
    return model
"""

ODD = """
import torch
from torch import nn

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.odd = nn.Parameter(torch.eye(8))
        self.norm = nn.LayerNorm(8)
        self.last = nn.Linear(8, 3)
        self.last.weight.requires_grad_(False)

    def forward(self, x):
        x = torch.special.bessel_j0(self.first(x)) @ self.odd
        return self.last(self.norm(x))

def network():
    return Odd()
"""

SETTINGS = [
    "data.wrong='nan'",
    "data.wrong=label",
    "data.wrong=empty",
    "data.wrong=width",
    "data.wrnog=x",
    "prune.sparsity=most",
    "prune.nonzeros=1000",
    "prune.exclude=['*']",
    "prune.exclude=['fc*']",
    "train.epocs=3",
    "train.optimizer=Muon",
    "model=lenet",
    "model=nowhere:f",
    "device=tpu9",
    "reference.file=none.safetensors",
    "train.file=none.safetensors",
    "seed",
]


def checked(ellzero, *arguments: str) -> dict:
    done = ellzero("check", *arguments, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_layers_steps_and_what_is_left_out(ellzero, project):
    before = {*project.iterdir()}
    settings = ("--set", "train.penalty.l2.strength=1e-5", "--set", "finetune.steps=7")
    document = checked(ellzero, "mine.toml", *settings)
    rows = {row["name"]: row for row in document["parameters"]}
    assert list(rows) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert (rows["0.weight"]["shape"], rows["0.weight"]["count"]) == ([16, 6], 96)
    assert rows["2.weight"]["penalized"] == ["l0", "l2"]
    assert [row["pruned"] for row in rows.values()] == [True, False, True, False]
    assert document["left_out"] == {"bias": 16 + 3}
    # 60 examples make 4 batches of 16; 7 steps are 2 epochs, of which the last one ends early
    stages = [(s["stage"], s["rounds"], s["epochs"], s["steps"]) for s in document["stages"]]
    assert stages == [("reference", 1, 2, 8), ("train", 1, 2, 8), ("finetune", 1, 2, 7)]
    assert document["seconds"] == sum(stage["seconds"] for stage in document["stages"])
    assert document["recipe"]["finetune"]["steps"] == 7
    assert document["obstacles"] == {
        "untraced": None, "compaction": [], "packing": [], "c": [], "integers": None
    }  # fmt: skip
    assert any("45 examples, fewer than 100" in text for text in document["warnings"])
    assert {path for path in project.iterdir() if path.name != "__pycache__"} == before


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_a_run_refuses_at_its_start_is_refused_in_the_same_words(setting, ellzero, project):
    said = ellzero("check", "mine.toml", "--set", setting).says()
    assert said == ellzero("run", "mine.toml", "--set", setting).says()


def test_a_loss_that_is_nan_from_the_beginning(ellzero, project):
    line = ellzero("check", "mine.toml", "--set", "data.wrong=loss").says()
    assert "became NaN or infinite within the first steps of reference" in line


def test_the_estimate_is_made_of_real_steps(ellzero, project):
    (project / "broken.py").write_text(SLOW)
    settings = ("--set", "model=broken:network", "--set", "finetune.epochs=4")
    stages = {s["stage"]: s["seconds"] for s in checked(ellzero, "mine.toml", *settings)["stages"]}
    # 4 batches and an evaluation an epoch, one more evaluation of the network as it was pruned
    for stage, calls in {"reference": 2 * 5, "train": 2 * 5, "finetune": 4 * 5 + 1}.items():
        assert calls * SLEEP <= stages[stage] < 3 * calls * SLEEP


def test_under_a_budget_it_is_at_most_so_much(ellzero, project):
    settings = ("--set", "prune.budget={max_accuracy_drop = 1.0}", "--set", "prune.rounds=3")
    done = ellzero("check", "mine.toml", *settings)
    assert done.code == 0
    assert "up to 3 x 2" in done.out
    assert "in all at most about" in done.out
    assert checked(ellzero, "mine.toml", *settings)["stages"][-1]["rounds"] == 3


def test_a_stage_that_is_given_by_a_file_takes_no_time(ellzero, project):
    assert ellzero("run", "mine.toml", "--output", "made").code == 0
    files = [f"{stage}.file=made/{name}.safetensors"
             for stage, name in (("reference", "reference"), ("train", "trained"))]  # fmt: skip
    document = checked(ellzero, "mine.toml", "--set", files[0], "--set", files[1])
    assert [stage["stage"] for stage in document["stages"]] == ["finetune"]
    assert document["parameters"][0]["penalized"] == []


@pytest.mark.parametrize(
    "off", ["train.epochs=0", "train.penalty.l0.strength=0", "train.penalty.l0.beta=0"]
)
def test_what_a_0_switches_off_does_not_penalize(off, ellzero, project):
    settings = ("--set", "prune.sparsity=0.5", "--set", off)
    document = checked(ellzero, "mine.toml", *settings)
    assert {tuple(row["penalized"]) for row in document["parameters"]} == {()}
    assert document["parameters"][0]["pruned"]


def test_what_cannot_be_compacted_packed_or_written_as_c_is_named_with_its_line(ellzero, project):
    (project / "broken.py").write_text(ODD)
    document = checked(ellzero, "mine.toml", "--set", "model=broken:network")
    line = 1 + ODD.splitlines().index(next(x for x in ODD.splitlines() if "bessel" in x))
    place = f"broken.py:{line}"
    found = document["obstacles"]
    for said in (found["compaction"][0], *found["packing"], *found["c"], found["integers"]):
        assert "special_bessel_j0" in said
        assert place in said
    assert document["left_out"] == {
        "bias": 8 + 8 + 3, "of a kind that is not known": 64, "normalization": 8, "frozen": 24
    }  # fmt: skip
    done = ellzero("check", "mine.toml", "--set", "model=broken:network")
    assert (done.code, done.err) == (0, "")
    for text in ("no C for", place, "a packed file needs the network's class", "no: frozen"):
        assert text in done.out


def test_a_table_for_people_shows_what_is_not_at_its_default(ellzero, project):
    done = ellzero("check", "mine.toml", "--set", "finetune.learning_rate=0.01")
    assert (done.code, done.err) == (0, "")
    shown = {line.strip() for line in done.out.splitlines() if line.startswith("  ")}
    assert {"train.batch_size = 16", "finetune.learning_rate = 0.01"} <= shown
    assert "prune.sparsity = 0.75" in shown
    # the reference takes over from the training; the rest is at its default
    assert not [x for x in shown if x.startswith(("reference.learning_rate", "seed", "name"))]
    assert "there is C for all of it" in done.out


STUDY = """
seeds = [0, 1]
sparsities = [0.5, 0.75]
[recipe]
model = "own_project:network"
data = "own_project:data"
[methods.l1]
strengths = [1e-5, 1e-4]
"""


def test_a_study_is_read_and_sent_to_its_command(ellzero, project):
    Path("some.toml").write_text(STUDY)
    done = ellzero("check", "some.toml")
    assert done.code == 0, done.err
    assert "next: ellzero compare some.toml" in done.out
    assert "--set and --seed go with a recipe" in ellzero("check", "some.toml", "--seed", 1).says()
    Path("some.toml").write_text(STUDY.replace("strengths", "strenghts"))
    assert "strenghts" in ellzero("check", "some.toml").says()
