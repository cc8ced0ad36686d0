"""Documents from anybody: what is refused before it costs time, memory or a traceback."""

import os
import time
import tomllib

import pytest

import ellzero as ez
from ellzero.documents import parse_json, parse_toml, read_text, require_plain
from ellzero.errors import InputError
from ellzero.recipe import Recipe


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a." * 20_000 + "a = 1", "a key in it has more than 32 parts"),
        ("[" + "a . " * 20_000 + "a]", "a key in it has more than 32 parts"),
        ("x = {" + '"a".' * 20_000 + "a = 1}", "a key in it has more than 32 parts"),
        ("a = " + "[" * 40 + "]" * 40, r"a\.0\.0.* lies more than 32 deep"),
        ("a = " + "[" * 3000 + "]" * 3000, "lie more than 32 deep"),
        ("a = " + "9" * 5000, "Exceeds the limit"),
        ("a = 0x" + "f" * 5000, "a is a number beyond 64 bits"),
        ("a = " + " " * 2**20, "1,048,580 characters; expected at most 1,048,576"),
    ],
)
def test_toml_beyond_all_bounds_is_refused_at_once(text, expected):
    began = time.process_time()
    with pytest.raises(InputError, match=expected):
        parse_toml(text)
    assert time.process_time() - began < 0.5


def test_toml_within_the_bounds():
    deep = "a." * 31 + "a = 9223372036854775807"
    assert parse_toml(deep) == tomllib.loads(deep)
    text = "words = '" + "a.b " * 20_000 + "'"
    assert parse_toml(text) == tomllib.loads(text)
    with pytest.raises(tomllib.TOMLDecodeError):
        parse_toml("a = ")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "9" * 5000, '"\\ud800"', '{"a": "\\udfff"}', "[" * 40 + "]" * 40]
)
def test_json_beyond_all_bounds(text):
    with pytest.raises(InputError):
        parse_json(text)


def test_only_regular_files_of_a_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="no regular file"):
        read_text(tmp_path / "pipe", 10)
    (tmp_path / "long").write_text("x" * 11)
    assert read_text(tmp_path / "long", 11) == "x" * 11
    with pytest.raises(InputError, match="more than 10 bytes"):
        read_text(tmp_path / "long", 10)
    with pytest.raises(InputError, match=r"study .* is not TOML: it is no regular file"):
        ez.Study.read(tmp_path / "pipe")


@pytest.mark.parametrize("key", ["text", "\ud800"])
@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, "a\ud800"])
def test_what_toml_cannot_say_is_named(key, value):
    with pytest.raises(InputError, match=r"data\.(text|a key) is"):
        require_plain({"data": {key: value}})


@pytest.mark.parametrize(
    "table",
    [
        {"model": {"name": "lenet-300-100", "text": "\ud800"}},
        {"model": {"name": "lenet-300-100", "number": 10**5000}},
        {"seed": 10**5000},
        {"data": {"name": "mnist", "deep": [[[[[[]]]]]] * 2, "deeper": None}},
    ],
)
def test_a_recipe_is_of_plain_tables(table):
    deeper = []
    for _ in range(300):
        deeper = [deeper]
    if "data" in table:
        table["data"]["deeper"] = deeper
    with pytest.raises(InputError) as caught:
        Recipe.parse({**table, "prune": {"sparsity": 0.5}})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "override",
    ["#=1", "a\n#=1", "train.x=" + "[" * 3000, "a." * 20_000 + "a=1", "train.epochs=" + "9" * 5000],
)
def test_an_override_that_is_none(override, tmp_path):
    (tmp_path / "a.toml").write_text("prune.sparsity = 0.5")
    began = time.process_time()
    with pytest.raises(InputError):
        Recipe.read(tmp_path / "a.toml", [override])
    assert time.process_time() - began < 0.5


def test_messages_do_not_repeat_what_is_endless(tmp_path):
    (tmp_path / "a.toml").write_text(f"prune.{'x' * 100_000} = 1")
    with pytest.raises(InputError) as caught:
        Recipe.read(tmp_path / "a.toml")
    assert len(str(caught.value)) < 1200
