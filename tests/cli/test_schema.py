"""`ellzero schema`: every key of a recipe, for people and for editors."""

import json

from ellzero.recipe_schema import recipe_schema


def test_the_schema_is_one_json_document(ellzero):
    done = ellzero("schema", "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == recipe_schema()


def test_a_table_shows_its_keys_with_kind_and_default(ellzero):
    done = ellzero("schema", "prune.budget")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith("[prune.budget]")
    assert [line.split(":")[0].strip() for line in lines[1:] if line] == [
        "max_accuracy_drop",
        "max_loss_increase",
    ]
    # the keys that three stages share, and those of its own
    train = ellzero("schema", "train").out
    assert '  decay: "constant", "linear", "cosine", "cubic" ["cosine"];' in train
    assert "  ramp: table;" in train
    assert "  sparsity: number >= 0, < 1;" in ellzero("schema").out


def test_a_table_that_there_is_not(ellzero):
    assert "no table 'trian'; did you mean train" in ellzero("schema", "trian").says()
