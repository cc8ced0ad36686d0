"""The estimators for scikit-learn: its own checks, and what the columns' importances tell."""

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ellzero as ez

sklearn = pytest.importorskip("sklearn", reason="comes with the extra 'scikit-learn'")

from sklearn.base import clone  # noqa: E402
from sklearn.datasets import make_classification, make_regression  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from ellzero.frameworks.scikit_learn import SparseClassifier, SparseRegressor  # noqa: E402

BOTH = [SparseClassifier, SparseRegressor]
QUICK: dict[str, Any] = {
    "hidden_layer_sizes": (8,),
    "max_iter": 20,
    "learning_rate_init": 0.05,
    "random_state": 0,
}


@parametrize_with_checks([estimator(**QUICK) for estimator in BOTH])
def test_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([estimator() for estimator in BOTH])
def test_the_checks_of_scikit_learn_with_the_defaults(estimator, check):
    check(estimator)


def table(estimator: type, examples: int = 120, columns: int = 6) -> Any:
    """Two columns that matter, then others that do not."""
    settings = {"n_features": columns, "n_informative": 2, "shuffle": False, "random_state": 0}
    if estimator is SparseRegressor:
        return make_regression(examples, **settings)
    return make_classification(examples, n_redundant=0, n_clusters_per_class=1, **settings)


@pytest.mark.parametrize("estimator", BOTH)
def test_of_fifty_columns_the_five_that_matter_rank_first(estimator):
    generator = np.random.default_rng(0)
    X = generator.normal(size=(600, 50)) * generator.uniform(0.1, 100, 50) + 7
    matters = [3, 11, 24, 38, 49]
    y = ((X - X.mean(0)) / X.std(0))[:, matters].sum(1)
    y = y if estimator is SparseRegressor else y > 0
    model = estimator((16,), sparsity=0.95, max_iter=25, learning_rate_init=0.01, random_state=0)
    importances = model.fit(X, y).feature_importances_
    assert sorted(importances.argsort()[-5:]) == matters
    assert importances[matters].sum() > 0.9
    assert importances.sum() == pytest.approx(1)
    assert (importances >= 0).all()
    assert (importances == 0).sum() > 20
    assert model.score(X, y) > 0.9


@pytest.mark.parametrize("estimator", BOTH)
def test_importances_are_sums_over_paths(estimator):
    """By the definition, path by path, for two hidden layers."""
    X, y = table(estimator, columns=4)
    settings = {**QUICK, "hidden_layer_sizes": (5, 3), "max_iter": 2, "sparsity": 0.5}
    model = estimator(**settings).fit(X, y)
    first, second, third = (
        layer.weight.abs().numpy() for layer in model.network_ if isinstance(layer, nn.Linear)
    )
    sums = [
        sum(
            first[i, column] * second[j, i] * third[k, j]
            for i in range(5)
            for j in range(3)
            for k in range(len(third))
        )
        for column in range(4)
    ]
    np.testing.assert_allclose(model.feature_importances_, np.array(sums) / sum(sums), rtol=1e-5)


@pytest.mark.parametrize("estimator", BOTH)
def test_a_column_without_importance_changes_no_prediction(estimator):
    X, y = table(estimator, columns=20)
    model = estimator(**QUICK, sparsity=0.95).fit(X, y)
    unread = model.feature_importances_ == 0
    assert unread.any()
    changed = X.copy()
    changed[:, unread] = 1e6
    np.testing.assert_array_equal(model.predict(changed), model.predict(X))
    changed[:, ~unread] += 10
    assert (model.predict(changed) != model.predict(X)).any()


@pytest.mark.parametrize("estimator", BOTH)
def test_the_count_of_weights_is_what_was_asked_for(estimator):
    X, y = table(estimator)
    model = estimator(**QUICK, sparsity=0.75).fit(X, y)
    weights = [layer.weight for layer in model.network_ if isinstance(layer, nn.Linear)]
    numel = sum(w.numel() for w in weights)
    assert sum(int(w.count_nonzero()) for w in weights) == numel - round(0.75 * numel)


def test_labels_may_be_of_any_kind():
    X, y = table(SparseClassifier)
    numbers = SparseClassifier(**QUICK).fit(X, y)
    texts = SparseClassifier(**QUICK).fit(X, np.array(["no", "yes"])[y])
    assert list(texts.classes_) == ["no", "yes"]
    assert (texts.predict(X) == np.array(["no", "yes"])[numbers.predict(X)]).all()
    np.testing.assert_allclose(numbers.predict_proba(X).sum(1), 1)


@pytest.mark.parametrize("estimator", BOTH)
def test_a_seed_gives_the_same_and_the_users_generator_stays(estimator):
    X, y = table(estimator)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (
        estimator(**{**QUICK, "random_state": seed}).fit(X, y).network_[-1].bias
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("estimator", BOTH)
def test_pipelines_searches_clones_and_pickles(estimator):
    X, y = table(estimator)
    pipeline = make_pipeline(StandardScaler(), estimator(**QUICK))
    name = f"{estimator.__name__.lower()}__sparsity"
    search = GridSearchCV(pipeline, {name: [0.5, 0.97]}, cv=2).fit(X, y)
    assert search.best_params_ == {name: 0.5}  # two or three weights are too few
    copied = pickle.loads(pickle.dumps(search))
    np.testing.assert_array_equal(copied.predict(X), search.predict(X))
    fitted = estimator(**QUICK).fit(X, y)
    copied: Any = clone(fitted)
    assert copied.get_params() == fitted.get_params()


@pytest.mark.slow
@pytest.mark.parametrize("estimator", BOTH)
def test_the_network_ships_as_any_other(estimator, tmp_path):
    """Packed and read without scikit-learn, it gives the same for raw columns."""
    X, y = table(estimator)
    model = estimator(**QUICK).fit(X, y)
    x = torch.tensor(X, dtype=torch.float32)
    ez.pack(ez.compact(ez.trace(model.network_, x[:1])).model, tmp_path / "net.ellz")
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import torch, ellzero as ez\n"
        f"x = torch.load({str(tmp_path / 'x.pt')!r})\n"
        "with torch.no_grad():\n"
        f"    y = ez.load({str(tmp_path / 'net.ellz')!r})(x)\n"
        f"torch.save(y, {str(tmp_path / 'y.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    outputs = torch.load(tmp_path / "y.pt").numpy()
    if estimator is SparseRegressor:
        np.testing.assert_allclose(outputs[:, 0], model.predict(X), rtol=1e-4, atol=1e-3)
    else:
        assert (model.classes_[outputs.argmax(1)] == model.predict(X)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_iter": 0}, "max_iter is 0; expected a whole number >= 1"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"hidden_layer_sizes": (4, 0)}, r"hidden_layer_sizes\[1\] is 0"),
        ({"learning_rate_init": -1}, "learning_rate_init is -1"),
        ({"sparsity": 1.0}, "prune.sparsity"),
        ({"strength": -1.0}, "strength is -1.0"),
        ({"prune_at": 1.0}, "prune_at is 1.0"),
    ],
)
def test_what_a_fit_refuses(settings, message):
    X, y = table(SparseClassifier)
    with pytest.raises(ez.InputError, match=message):
        SparseClassifier(**settings).fit(X, y)
