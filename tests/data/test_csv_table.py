"""A CSV file as a data set: what its columns become, and what is refused, with its place."""

import csv as csv_format
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ellzero as ez
from ellzero.data import columns as columns_module
from ellzero.data.columns import Columns
from ellzero.data.csv_table import csv
from ellzero.data.part import Part
from ellzero.factories import build_data
from ellzero.recipe import Factory
from small import mlp, recipe


@pytest.fixture
def write(tmp_path):
    """Writes a CSV file of rows, or of bytes as they are, and gives its path."""

    def write(content: list[str] | bytes, name: str = "table.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(
            content if isinstance(content, bytes) else "\n".join([*content, ""]).encode()
        )
        return path

    return write


def whole(part: Part | None) -> tuple[Tensor, Tensor]:
    """All preprocessed inputs and targets of a part, in order."""
    assert part is not None
    ((inputs, targets),) = part.batches(1_000_000, torch.device("cpu"))
    return inputs, targets


def raw(data: ez.Data, part: Part | None) -> Tensor:
    """The inputs of a part as they stand in the file, by hand from the preprocessed ones."""
    assert data.preprocess is not None
    scale, shift = torch.tensor(data.preprocess.scale), torch.tensor(data.preprocess.shift)
    return (whole(part)[0] - shift) / scale


# every row of class a has 1 and 10, every row of class b 3 and 50, so that in any stratified part
# the means are 2 and 30, the deviations 1 and 20
TWO_CLASSES = ["small,large,kind", *["1,10,a", "3,50,b"] * 10]


def test_columns_become_standardized_inputs_and_texts_become_classes(write):
    data = csv(path=write(TWO_CLASSES), target="kind")
    assert data.classes == ("a", "b")
    assert data.preprocess == ez.Preprocess((1.0, 0.05), (-2.0, -1.5))
    assert [part.examples for part in data.parts] == [16, 2, 2]
    for part in data.parts:
        inputs, labels = whole(part)
        assert inputs.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert labels.bincount().tolist() == [len(labels) // 2] * 2  # stratified
        expected = [[-1.0, -1.0] if label == 0 else [1.0, 1.0] for label in labels]
        assert torch.allclose(inputs, torch.tensor(expected))


def numbered(count: int = 40) -> list[str]:
    """Rows that tell their own number, of two classes, with a target for regression."""
    return [f"{i},{(i % 2 and 'odd') or 'even'},{i / 8}" for i in range(count)]


def test_every_row_is_in_one_part_with_its_own_target(write):
    path = write(["number,parity,eighth", *numbered()])
    data = csv(path=path, target="eighth", exclude="parity", validation=0.25, test=0.125)
    assert [part.examples for part in data.parts] == [25, 10, 5]
    seen = []
    for part in data.parts:
        numbers, targets = raw(data, part).round(), whole(part)[1]
        assert targets.shape == (len(targets), 1)
        assert targets.dtype == torch.float32
        assert torch.equal(numbers / 8, targets)
        seen += numbers.flatten().tolist()
    assert sorted(seen) == list(range(40))
    assert not data.is_classification


def test_a_row_of_the_test_part_changes_nothing_of_the_others(write):
    rows = ["number,parity,eighth", *numbered()]
    first = csv(path=write(rows), target="parity", exclude="eighth")
    place = int(raw(first, first.test)[0].round()) + 1
    rows[place] = rows[place].replace(rows[place].split(",")[0], "1000000", 1)
    again = csv(path=write(rows), target="parity", exclude="eighth")
    assert again.preprocess == first.preprocess
    assert torch.equal(whole(again.train)[0], whole(first.train)[0])
    assert raw(again, again.test)[0] == pytest.approx(1e6)
    assert abs(whole(first.train)[0].mean()) < 1e-6
    assert whole(first.train)[0].std(correction=0) == pytest.approx(1, abs=1e-6)


def test_a_second_reading_gives_the_same_bits(write):
    generator = random.Random(0)
    rows = [f"{generator.gauss()},{generator.gauss()},{generator.choice('xyz')}" for _ in range(50)]
    path = write(["a,b,c", *rows])
    first, again = (csv(path=path, target="a", categorical="c") for _ in range(2))
    assert first.preprocess == again.preprocess
    for part, other in zip(first.parts, again.parts, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(whole(part), whole(other), strict=True))


def test_categories_are_inputs_of_0_and_1_in_the_place_of_their_column(write):
    # the codes are numbers, so 9 comes before 10; an empty cell is a category of its own
    rows = [f"{code},{colour},{colour[:1]}y" for code in (10, 9) for colour in ("red", "")]
    path = write(["code,colour,kind", *rows * 10])
    data = csv(path=path, target="kind", categorical=["colour", "code"])
    assert data.classes == ("ry", "y")
    assert data.preprocess == ez.Preprocess((1.0,) * 4, (0.0,) * 4)
    inputs, labels = whole(data.train)
    assert {tuple(row) for row in inputs.tolist()} == {
        (nine, 1 - nine, empty, 1 - empty) for nine in (0.0, 1.0) for empty in (0.0, 1.0)
    }
    assert torch.equal(inputs[:, 2], labels.float())  # 'y' are the rows without a colour


def test_a_category_that_the_training_rows_lack_is_told_and_gives_zeros(write):
    path = write(["colour,x,y", *["red,1,a", "blue,2,b"] * 10])
    other = write(["colour,x,y", "green,1,a", "red,1,a"], "other.csv")
    with pytest.warns(ez.EllzeroWarning, match=r"table.csv, column 'colour': no .* has 'green';"):
        data = csv(path=path, target="y", categorical="colour", test_path=other)
    # blue and red, from the training rows, then the number
    assert whole(data.test)[0][:, :2].tolist() == [[0, 0], [0, 1]]


def test_another_file_is_the_test_part_whatever_the_order_of_its_columns(write):
    path = write(TWO_CLASSES)
    other = write(["kind,large,small", "b,50,1", "c,90,3"], "other.csv")
    data = csv(path=path, target="kind", test_path=other)
    assert data.classes == ("a", "b", "c")
    assert [part.examples for part in data.parts] == [18, 2, 2]
    inputs, labels = whole(data.test)
    assert torch.allclose(inputs, torch.tensor([[-1.0, 1.0], [1.0, 3.0]]))
    assert labels.tolist() == [1, 2]


def test_what_is_excluded_need_not_be_in_the_other_file(write):
    path = write(["id,x,y", *["7,1.5,a", "8,2.5,b"] * 10])
    for rows in (["x,y", "1.5,a"], ["y,id,x", "a,7,1.5"]):
        other = write(rows, "other.csv")
        data = csv(path=path, target="y", exclude="id", test_path=other)
        assert raw(data, data.test).tolist() == [[1.5]]


def test_no_test_part_by_a_fraction_of_0(write):
    data = csv(path=write(TWO_CLASSES), target="kind", test=0)
    assert data.test is None
    assert [part.examples for part in data.parts] == [18, 2]


def with_targets(*targets: str) -> list[str]:
    return ["x,y", *[f"{i},{target}" for i, target in enumerate(targets * 10)]]


@pytest.mark.parametrize(
    ("targets", "task", "classes"),
    [
        (("b", "a"), None, ("a", "b")),
        (("1.5", "2"), None, None),
        (("1.5", "2"), "classification", ("1.5", "2")),
        (("10", "9"), "classification", ("9", "10")),
        (("10", "9"), "regression", None),
        (("10", "x"), "classification", ("10", "x")),
    ],
)
def test_the_task_is_told_or_follows_from_the_target(write, targets, task, classes):
    data = csv(path=write(with_targets(*targets)), target="y", task=task)
    assert data.classes == classes
    assert data.is_classification == (classes is not None)


def test_several_targets_are_a_regression(write):
    path = write(["x,u,v", *["1,2,30", "2,3,40"] * 10])
    data = csv(path=path, target=["v", "u"])
    assert {tuple(row) for row in whole(data.train)[1].tolist()} == {(30, 2), (40, 3)}
    assert whole(data.train)[0].shape == (16, 1)


MORE = ["4,5,a", "6,7,b"]

REFUSED = {
    "a text": (["x,y,k", "1,2,a", "1,many,b"], {}, "row 3, column 'y': 'many' is no .*categorical"),
    "an empty cell": (["x,y,k", "1,,a"], {}, "row 2, column 'y': an empty cell.* put a number in"),
    "nan": (["x,y,k", "nan,2,a"], {}, "row 2, column 'x': 'nan' is no finite number"),
    "inf": (["x,y,k", "-inf,2,a"], {}, "row 2, column 'x': '-inf' is no finite number"),
    "beyond float32": (["x,y,k", "1,1e39,a"], {}, "row 2, column 'y': '1e39' .* of float32"),
    "underscores": (["x,y,k", "1,1_0,a"], {}, "row 2, column 'y': '1_0' is no finite number"),
    "a long text": (["x,y,k", f"1,{'z' * 99},a"], {}, f"'{'z' * 60}\\.\\.\\.' is no finite"),
    "a short row": (["x,y,k", *MORE, "1,2"], {}, "row 4 has 2 cells; expected 3"),
    "a long row": (["x,y,k", *MORE, "1,2,a,"], {}, "row 4 has 4 cells; expected 3"),
    "after a cell of two lines": (["x,y,k", '4,5,"a', 'b"', "1,2"], {}, "row 4 has 2 cells"),
    "after an empty line": (["x,y,k", "", "1,z,a"], {}, "row 3, column 'y'"),
    "a quote that stays open": (
        ["x,y,k", *MORE, '1,2,"a', "4,5,b"],
        {},
        "row 4 is no row of cells",
    ),
    "a huge cell": (["x,y,k", f"1,2,{'z' * 140_000}"], {}, "row 2 .* larger than field limit"),
    "a column twice": (["x,y,x"], {}, "row 1 names the column 'x' twice"),
    "a column without a name": (["x,,k"], {}, "row 1: column 2 has no name"),
    "nothing": ([], {}, "table.csv is empty"),
    "no rows": (["x,y,k"], {}, "table.csv has no rows"),
    "an unknown target": (["x,y,k"], {"target": "kk"}, "no column 'kk'; did you mean k"),
    "an unknown column": (["x,y,k"], {"exclude": ["q"]}, "no column 'q'; known: x, y, k"),
    "two roles": (["x,y,k"], {"exclude": "k"}, "exclude names the column 'k', as target does"),
    "no target": (["x,y,k"], {"target": []}, "target names no column"),
    "a target by number": (["x,y,k"], {"target": 2}, "target is 2; expected the name of a column"),
    "no inputs": (["x,y,k", *MORE * 5], {"exclude": ["x", "y"]}, "has no column beside those"),
    "an empty target": (["x,y,k", *MORE, "1,2,"], {}, "row 4, column 'k': the target is empty"),
    "whole numbers": (
        ["x,y,k", *MORE],
        {"target": "y", "exclude": "k"},
        'column \'y\' has whole numbers alone.*task = "classification" or task = "regression"',
    ),
    "numbers and texts": (
        ["x,k", "1,2.5", "2,none", "3,1.5"],
        {},
        "row 3, column 'k': 'none' is no number, as other targets are",
    ),
    "a text in a regression": (
        ["x,k", "1,2.5", "2,none"],
        {"task": "regression"},
        "row 3, column 'k': 'none' is no finite number of float32; correct it, or drop the row",
    ),
    "two names of one number": (
        ["x,k", "1,2", "2,3", "3,2.0"],
        {"task": "classification"},
        "row 4, column 'k': '2.0' is the number '2', too",
    ),
    "classes of two columns": (
        ["x,y,k", *MORE],
        {"target": ["y", "k"], "task": "classification"},
        "target names 2 columns; classification has one",
    ),
    "an unknown task": (["x,y,k", *MORE], {"task": "both"}, "task is 'both'; expected"),
    "a long delimiter": (["x,y,k", *MORE], {"delimiter": ";;"}, "delimiter is ';;'; expected one"),
    "all for testing": (["x,y,k", *MORE], {"test": 0.9}, "leave none for training"),
    "too many categories": (
        ["x,k", *[f"c{i},a" for i in range(1300)]],
        {"categorical": "x"},
        "column 'x' has 1,040 categories; expected at most 1,000",
    ),
}


@pytest.mark.parametrize(("rows", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_named_with_its_place(write, rows, options, message):
    path = write(rows)
    with pytest.raises(ez.InputError, match=message) as refusal:
        csv(**{"path": path, "target": "k", **options})
    if message.startswith("row "):
        assert str(path) in str(refusal.value)


def test_the_row_of_a_second_file_is_that_of_this_file(write):
    path = write(TWO_CLASSES)
    other = write(["small,large,kind", "1,2,a", "1,2,"], "other.csv")
    with pytest.raises(
        ez.InputError, match=r"other\.csv, row 3, column 'kind': the target is empty"
    ):
        csv(path=path, target="kind", test_path=other)
    write(["small,kind,extra", "1,a,1"], "other.csv")
    with pytest.raises(ez.InputError, match="only one of them has 'extra', 'large'"):
        csv(path=path, target="kind", test_path=other)


def test_a_byte_order_mark_other_line_ends_spaces_and_quotes_do_not_count(write):
    text = "\n".join(TWO_CLASSES)
    expected = csv(path=write(text.encode()), target="kind")
    variant = ' "small"; large ;kind\n' + text.split("\n", 1)[1].replace(",", " ; ")
    content = b"\xef\xbb\xbf" + variant.replace("\n", " \r\n\r\n").encode()
    assert Columns(write(content), ["kind"], [], ";").names == ["small", "large", "kind"]
    data = csv(path=write(content), target="kind", delimiter=";")
    assert data.classes == expected.classes
    assert data.preprocess == expected.preprocess
    assert torch.equal(whole(data.train)[0], whole(expected.train)[0])


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-16", "table.csv is text in UTF-16; save it as UTF-8"),
        ("utf-32", "table.csv is text in UTF-32; save it as UTF-8"),
        ("latin-1", "table.csv, row 3: the byte 0xe9 is not UTF-8; save the file as UTF-8"),
    ],
)
def test_other_encodings_are_refused(write, encoding, message):
    content = "x,k\n1,a\n2,né\n".encode(encoding)
    with pytest.raises(ez.InputError, match=message):
        csv(path=write(content), target="k")


def test_what_is_no_file_or_too_large_is_refused(write, tmp_path, monkeypatch):
    with pytest.raises(ez.InputError, match=r"nowhere\.csv is no file$"):
        csv(path=tmp_path / "nowhere.csv", target="k")
    # as from another folder than that of the project
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ez.InputError, match=f"is no file in {tmp_path}, the folder you work in"):
        csv(path="nowhere.csv", target="k")
    with pytest.raises(ez.InputError, match="is no file"):
        csv(path=tmp_path, target="k")
    path = write(TWO_CLASSES)
    monkeypatch.setattr(columns_module, "MOST_BYTES", path.stat().st_size)
    assert len(Columns(path, ["kind"], [], ",")) == 20
    monkeypatch.setattr(columns_module, "MOST_BYTES", path.stat().st_size - 1)
    with pytest.raises(ez.InputError, match="has 157 bytes; expected at most 156"):
        csv(path=path, target="kind")


BLURRED = {
    "time stamps within a minute": [1_700_000_000 + i for i in range(60)],
    "exact, but not once standardized": [16_000_000 + (i % 3) for i in range(60)],
    "smaller than float32 has": [1e-50 * i for i in range(60)],
    "a deviation whose reciprocal is infinite": [1e-40 * i for i in range(60)],
}


@pytest.mark.parametrize("values", BLURRED.values(), ids=BLURRED)
def test_numbers_that_float32_blurs_are_told(write, values):
    path = write(["x,when,k", *[f"{i},{v!r},{'ab'[i % 2]}" for i, v in enumerate(values)]])
    with pytest.warns(ez.EllzeroWarning, match="column 'when': float32 cannot.*subtract") as told:
        csv(path=path, target="k")
    assert len(told) == 1


def test_a_target_that_float32_blurs_is_told(write):
    path = write(["x,y", *[f"{i},{1.7e9 + i / 2}" for i in range(60)]])
    with pytest.warns(ez.EllzeroWarning, match="column 'y': float32 cannot tell its numbers apart"):
        csv(path=path, target="y")


def test_numbers_that_float32_tells_apart_are_not_told(write):
    # warnings are errors in tests; a constant column has no deviation, though 0.1 is rounded
    values = [1_700_000_000 + 86_400 * i for i in range(60)]
    path = write(["x,when,k", *[f"0.1,{v},{'ab'[i % 2]}" for i, v in enumerate(values)]])
    assert csv(path=path, target="k").train.examples == 48


NUMBERS = st.floats(-3e38, 3e38) | st.integers(-(10**30), 10**30).map(float)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=8).map(str.strip)


@settings(max_examples=50)
@given(st.lists(st.tuples(NUMBERS, TEXTS), min_size=1, max_size=8))
def test_what_csv_writes_is_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "round-trip.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv_format.writer(file)
        writer.writerows([("number", "text"), *rows])
    columns = Columns(path, ["text"], [], ",")
    assert columns.quantities("number").tolist() == [number for number, _ in rows]
    values = {text: index for index, text in enumerate(columns.texts["text"].known)}
    known = list(values)
    assert [known[i] for i in columns.texts["text"].mapped(values)] == [text for _, text in rows]


def test_a_recipe_names_the_table_and_a_network_learns_from_it(write):
    generator = np.random.default_rng(0)
    x = generator.normal(1000, 300, (200, 5))
    kinds = np.where(x[:, 0] > 1000, "above", "below")
    rows = [",".join([*map(str, row), kind, "n/a"]) for row, kind in zip(x, kinds, strict=True)]
    path = write(["a,b,c,d,e,kind,note", *rows])
    asked = recipe(
        data={"name": "csv", "path": str(path), "target": "kind", "exclude": ["note"]},
        train={"epochs": 8},
    )
    data = build_data(asked.data)
    result = ez.compress(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)), data, asked)
    assert ez.evaluate(result.model, data).score > 0.8


def test_a_regression_fits_a_network_of_one_output(write):
    path = write(
        ["a,b,c,d,e,f,y", *[",".join(map(str, [i + k / 8 for k in range(7)])) for i in range(30)]]
    )
    data = build_data(Factory.model_validate({"name": "csv", "path": str(path), "target": "y"}))
    data.check_fit(mlp(outputs=1))
