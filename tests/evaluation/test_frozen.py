"""The frozen tier: heads against scikit-learn, draws that stay in the window, replicates that are paired."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from e2d_lib.evaluation import frozen
from e2d_lib.method.ssfl import slice_window
from e2d_lib.network.features import Features
from tests import cells

ONE = {name: (values[0],) for name, values in frozen.AXES.items()}


def made(n=24, d=12, slices=20, signal=1.5, seed=0) -> tuple[Features, np.ndarray]:
    """Scans whose label moves the first feature of their middle slices, where the area is largest."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    values = rng.standard_normal((n, slices, d)).astype(np.float16)
    values[:, 5:15, 0] += signal * labels[:, None]
    areas = np.tile(100 * np.minimum(np.arange(slices), np.arange(slices)[::-1]), (n, 1)) + rng.integers(9, size=slices)
    counts = np.full(n, slices)
    names = tuple(f"s{k:02d}" for k in range(n))
    return Features(names, values.reshape(-1, d), np.cumsum(counts) - counts, counts, tuple(areas), {}), labels


@pytest.fixture
def data() -> frozen.Data:
    features, labels = made()
    table = pd.DataFrame({"scan_id": features.scan_ids, "label": labels, "fold": np.where(np.arange(24) < 16, 1, 5)})
    return frozen.data({True: features, False: features}, table)


def test_the_full_factorial_has_the_papers_choice_first():
    table = frozen.settings()
    assert len(table) == len(table.drop_duplicates()) == 16 * 8 * 2 * 7
    assert table.iloc[0].to_dict() == {name: values[0] for name, values in frozen.AXES.items()}
    assert table[table["method"].isin(["random", "spaced"])]["n_intervals"].isna().all()
    assert (table["n_intervals"].fillna(0) <= table["n_samples"]).all()


@pytest.mark.parametrize("penalty", [0.1, 10.0])
def test_the_scan_head_is_scikit_learns_logistic_regression(penalty, monkeypatch):
    """With the penalty fixed, on the standardised features; the intercept of the former is free but for a hair."""
    monkeypatch.setattr(frozen, "PENALTIES", (penalty,))
    monkeypatch.setattr(frozen, "INTERCEPT", 1e4)
    generator = torch.Generator().manual_seed(0)
    labels = np.tile([0, 1, 1, 0], (3, 10))
    train = torch.randn(3, 40, 70, generator=generator) + torch.from_numpy(labels)[..., None] * 0.2
    test = torch.randn(3, 9, 70, generator=generator)
    found = frozen.scan_head(train, labels, test, np.tile(np.arange(40), (3, 1)))
    for r in range(3):
        x = train[r].double().numpy()
        centre, spread = x.mean(0), x.std(0) + 0.1 * x.std(0).mean()
        x = (x - centre) / spread
        scale = np.sqrt(np.square(x).sum(1).mean())
        head = LogisticRegression(C=penalty, tol=1e-10, max_iter=10_000).fit(x / scale, labels[r])
        expected = head.predict_proba((test[r].numpy() - centre) / spread / scale)[:, 1]
        np.testing.assert_allclose(found[r], expected, atol=2e-4)


def test_scans_of_weight_nought_are_left_out():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    y = (torch.arange(10) % 2).double()
    kernel = x @ x.T + 1
    weights = torch.ones(10, dtype=torch.float64)
    weights[7:] = 0
    left_out = (kernel @ frozen._newton(kernel, y, weights)[:, None])[:, 0]
    alone = kernel[:, :7] @ frozen._newton(kernel[:7, :7], y[:7], torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(left_out, alone)


def test_the_penalty_is_the_one_with_the_least_loss_on_scans_left_out():
    """Noise wants a strong penalty; two far classes the weakest."""
    generator = torch.Generator().manual_seed(2)
    labels = np.tile([0, 1], (1, 20))
    y = torch.from_numpy(labels).float()
    folds = frozen._inner_folds(labels, np.arange(40)[None])
    assert np.bincount(folds[0]).tolist() == [8] * 5 and all(labels[0][folds[0] == k].sum() == 4 for k in range(5))
    noise = torch.randn(1, 40, 30, generator=generator)
    assert frozen._penalty(noise @ noise.mT / 30, y, folds).item() <= 1
    clear = noise / 10 + 3 * y[..., None]
    clear = clear - clear.mean(1, keepdim=True)
    assert frozen._penalty(clear @ clear.mT / 30, y, folds).item() == pytest.approx(max(frozen.PENALTIES))


@pytest.mark.parametrize("method", frozen.AXES["method"])
def test_draws_lie_in_the_window_and_repeat(method):
    features, _ = made()
    sampler = {"method": method, "n_samples": 4, "n_intervals": 4 if method in ("kds", "systematic") else pd.NA}
    rows = frozen.draws(features, sampler, 0.5, replicates=3, seed=1)
    assert rows.shape == (3, 24, 4)
    for scan, (start, areas) in enumerate(zip(features.starts, features.areas, strict=True)):
        low, high = slice_window(areas, 0.5)
        assert ((rows[:, scan] >= start + low) & (rows[:, scan] < start + high)).all()
    np.testing.assert_array_equal(rows, frozen.draws(features, sampler, 0.5, replicates=3, seed=1))
    assert (rows != frozen.draws(features, sampler, 0.5, replicates=3, seed=2)).any()


@pytest.mark.parametrize("head", ["scan", "slice"])
def test_a_signal_in_the_window_is_found_and_no_signal_is_not(head, data):
    table = frozen.settings(ONE)
    labels = data.labels[data.valid]
    scores = frozen.run(data, table, head=head, replicates=4)
    assert scores.shape == (1, 4, 8) and (scores >= 0).all() and (scores <= 1).all()
    assert scores[0].mean(0)[labels == 1].min() > scores[0].mean(0)[labels == 0].max()
    shuffled = data._replace(labels=np.random.default_rng(3).permutation(data.labels))
    again = frozen.run(shuffled, table, head=head, replicates=4)
    assert not np.array_equal(again, scores)


def test_a_setting_without_the_crop_has_its_own_features(data):
    other = replace(data.features[False], values=data.features[False].values[::-1].copy())
    table = frozen.settings({**ONE, "crop": (True, False)})
    both = data._replace(features={True: data.features[True], False: other})
    with_crop, without = frozen.run(both, table, replicates=2)
    same, turned = (
        frozen.run(data._replace(features={True: one}), table.iloc[:1], replicates=2)[0]
        for one in both.features.values()
    )
    np.testing.assert_array_equal(with_crop, same)
    np.testing.assert_array_equal(without, turned)
    assert not np.array_equal(with_crop, without)


def test_replicates_are_paired_over_settings(data):
    """A setting's scores do not depend on which others are in the table; crop or none with equal features is equal."""
    table = frozen.settings({**ONE, "crop": (True, False), "few_shot": (1.0, 0.5), "method": ("kds", "random")})
    scores = frozen.run(data, table, replicates=3)
    alone = frozen.run(data, table.iloc[[3]], replicates=3)
    np.testing.assert_array_equal(alone[0], scores[3])
    key = [name for name in table if name != "crop"]
    for _, rows in table.groupby(key, dropna=False).groups.items():
        np.testing.assert_array_equal(scores[rows[0]], scores[rows[1]])


def test_few_scans_are_scored_without_inner_folds(data):
    table = frozen.settings({**ONE, "few_shot": (0.01,)})
    for head in ("scan", "slice"):
        assert np.isfinite(frozen.run(data, table, head=head, replicates=2)).all()


def test_both_classes_are_needed(data):
    table = pd.DataFrame({"scan_id": data.features[True].scan_ids, "label": 1, "fold": 5})
    with pytest.raises(ValueError, match="0 scans to train on: both classes are needed"):
        frozen.data(data.features, table)


def test_effects_are_differences_of_plain_means_over_pairs(data):
    axes = {**ONE, "crop": (True, False), "method": ("kds", "random"), "n_intervals": (4, 8), "few_shot": (1.0, 0.5)}
    table, labels = frozen.settings(axes), data.labels[data.valid]
    scores = np.random.default_rng(0).random((len(table), 3, 8))
    found = frozen.effects([frozen.Tier(table, labels, scores, {})])
    auc = np.array([np.mean([roc_auc_score(labels, row) for row in runs]) for runs in scores])
    table = table.assign(auc=auc, n_intervals=table["n_intervals"].fillna(4))
    found = found[found["metric"] == "roc_auc"].set_index(["scope", "axis", "level", "few_shot"])
    kds = table[(table["method"] == "kds") & (table["few_shot"] == 0.5)]
    random = table[(table["method"] == "random") & (table["few_shot"] == 0.5)]
    kds4 = kds[kds["n_intervals"] == 4]
    assert found.loc[("average", "method", "random", 0.5), "difference"] == pytest.approx(
        random["auc"].mean() - kds4["auc"].mean()
    )
    assert found.loc[("paper", "method", "random", 0.5), "difference"] == pytest.approx(
        random[random["crop"]]["auc"].item() - kds4[kds4["crop"]]["auc"].item()
    )
    assert found.loc[("average", "n_intervals", "8", 0.5), "settings"] == 2
    crops = table[table["few_shot"] == 1.0].groupby("crop")["auc"].mean()
    assert found.loc[("average", "crop", "False", 1.0), "difference"] == pytest.approx(crops[False] - crops[True])
    shares = table.groupby("few_shot")["auc"].mean()
    assert found.loc[("average", "few_shot", "0.5", 0.5), "difference"] == pytest.approx(shares[0.5] - shares[1.0])
    assert set(found.index.get_level_values("axis")) == {"crop", "method", "n_intervals", "few_shot"}


def test_words_name_what_survives_whichever_way():
    rows = [("kds", 0.05, 0.2, 1.0), ("spaced", 0.06, 0.01, 0.1), ("random", -0.04, 0.03, 1.0)]
    effects = pd.DataFrame(rows, columns=["level", "difference", "p_holm", "few_shot"]).assign(
        scope="paper", axis="method", metric="macro_f1", baseline="systematic", low=-0.1, high=0.1, detectable=0.07
    )

    def said(effects):
        return cells.run("06_ablations", "of_frozen, keys = ", frozen_effects=effects).of_frozen

    (line,) = said(effects)
    assert "spaced +0.060" in line and "at 10 %; random -0.040" in line and "kds" not in line
    assert "3 tested" in line and "0.070" in line and "macro F1" in line
    assert "none differs" in said(effects.iloc[:1])[0] and said(None) == []
