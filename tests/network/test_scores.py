"""Scan scores by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from e2d_lib.network import scores


class TestScanScores:
    SLICES = pd.DataFrame(
        {
            "scan_id": ["b", "a", "a", "a", "a"],
            "probability": [0.5, 0.1, 0.2, 0.6, 0.9],
            "label": [0, 1, 1, 1, 1],
        }
    )

    @pytest.mark.parametrize(
        ("how", "expected"),
        [
            ("mean", 0.45),
            ("median", 0.4),
            ("max", 0.9),
            ("topk", 1.7 / 3),
            # odds 1/9 · 1/4 · 3/2 · 9 = 3/8; fourth root; odds back to a probability
            ("logodds", (3 / 8) ** 0.25 / (1 + (3 / 8) ** 0.25)),
        ],
    )
    def test_hand_worked(self, how, expected):
        table = scores.scan_scores(self.SLICES, how=how)
        assert table.scan_id.tolist() == ["a", "b"]
        np.testing.assert_allclose(table.probability, [expected, 0.5], rtol=1e-12)
        assert table.n_slices.tolist() == [4, 1]
        assert table.label.tolist() == [1, 0]

    @pytest.mark.parametrize("how", ["mean", "median", "max", "topk", "logodds"])
    def test_order_of_slices_does_not_matter(self, how, rng):
        slices = pd.DataFrame({"scan_id": rng.integers(0, 9, 100).astype(str), "probability": rng.random(100)})
        shuffled = slices.sample(frac=1, random_state=1)
        one, other = scores.scan_scores(slices, how=how), scores.scan_scores(shuffled, how=how)
        pd.testing.assert_frame_equal(one, other, rtol=1e-12)

    def test_logits_give_what_their_sigmoids_give(self):
        logits = np.log(self.SLICES.probability / (1 - self.SLICES.probability))
        for how in ("mean", "logodds"):
            np.testing.assert_allclose(
                scores.scan_scores(self.SLICES.assign(logit=logits), how=how).probability,
                scores.scan_scores(self.SLICES, how=how).probability,
                rtol=1e-12,
            )

    def test_large_logits_are_not_cut_off(self):
        slices = pd.DataFrame({"scan_id": "a", "logit": [40.0, -38.0], "probability": [1.0, 0.0]})
        assert scores.scan_scores(slices, how="logodds").probability[0] == pytest.approx(1 / (1 + math.exp(-1)))

    def test_certain_probabilities_stay_finite(self):
        slices = pd.DataFrame({"scan_id": "a", "probability": [0.0, 1.0]})
        assert scores.scan_scores(slices, how="logodds").probability[0] == pytest.approx(0.5)

    def test_scores_by_seed(self):
        slices = pd.concat([self.SLICES.assign(seed=0), self.SLICES.assign(seed=1, probability=0.25)])
        table = scores.scan_scores(slices, by=("seed", "scan_id"))
        assert table[["seed", "scan_id", "n_slices"]].to_numpy().tolist() == [
            [0, "a", 4],
            [0, "b", 1],
            [1, "a", 4],
            [1, "b", 1],
        ]

    @pytest.mark.parametrize(
        ("change", "options", "message"),
        [
            ({"probability": [0.5, np.nan, 0.2, 0.6, 0.9]}, {}, "1 of 5 probabilities are NaN"),
            ({"probability": [0.5, 1.2, 0.2, 0.6, -1]}, {}, "2 of 5 probabilities"),
            ({"label": [0, 1, 0, 1, 1]}, {}, "label differs between slices of a"),
            ({"scan_id": ["b", None, "a", "a", "a"]}, {}, "empty values"),
            ({"logit": [0.5, np.nan, 0.2, 0.6, 0.9]}, {"how": "logodds"}, "1 of 5 slice logits are NaN"),
            ({}, {"how": "mode"}, "how='mode'"),
            ({}, {"how": "topk", "k": 0}, "k=0"),
            ({}, {"by": ("seed",)}, "lack the columns"),
        ],
    )
    def test_bad_input(self, change, options, message):
        with pytest.raises(ValueError, match=message):
            scores.scan_scores(self.SLICES.assign(**change), **options)

    def test_no_scores(self):
        with pytest.raises(ValueError, match=r"lack the columns \['probability'\]"):
            scores.scan_scores(self.SLICES[["scan_id"]])
