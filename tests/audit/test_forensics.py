"""Forensic arithmetic against brute force, scikit-learn, and the numbers the saved scores are known to give."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from e2d_lib.audit import forensics
from tests import cells
from tests.conftest import ROOT

SAVED_F1 = [  # value, rows, errors, |TP - TN|
    (0.9361715971641709, 89_264, 5_688, 3_660),
    (0.9399862734370892, 89_264, 5_353, 2_459),
    (0.9293423569827828, 89_264, 6_305, 1_661),
    (0.934676915337816, 98_089, 6_354, 8_961),
    (0.92548514148309, 99_307, 7_380, 5_143),
]
SAVED_AUC = [  # value, the two class sizes among 89,264 rows
    (0.9824418048946397, 43_374, 45_890),
    (0.9770150725466737, 43_970, 45_294),
    (0.98071111710569, 43_970, 45_294),
    (0.9806964362787085, 43_970, 45_294),
]


def macro_f1_of(tp: int, tn: int, fp: int, fn: int) -> Fraction:
    """From the definition: the mean of the two classes' 2 · hits / (2 · hits + errors)."""
    return (Fraction(2 * tp, 2 * tp + fp + fn) + Fraction(2 * tn, 2 * tn + fp + fn)) / 2


def labels_of(tp: int, tn: int, fp: int, fn: int) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat([1, 0, 0, 1], [tp, tn, fp, fn]), np.repeat([1, 0, 1, 0], [tp, tn, fp, fn])


def matrices(n: int):
    """Every confusion matrix of n cases with at least one error."""
    for tp, tn in itertools.product(range(n), repeat=2):
        for fp in range(n - tp - tn + 1):
            if tp + tn < n:
                yield tp, tn, fp, n - tp - tn - fp


class TestMacroF1:
    def test_the_closed_form_is_the_definition(self):
        for n in (1, 2, 7, 12):
            for tp, tn, fp, fn in matrices(n):
                assert forensics.macro_f1(n, fp + fn, abs(tp - tn)) == macro_f1_of(tp, tn, fp, fn)

    def test_scikit_learn_is_within_the_spacings_allowed(self, rng):
        for _ in range(100):
            tp, tn, fp, fn = (int(k) for k in rng.integers(1, [400, 400, 40, 40]))
            value = f1_score(*labels_of(tp, tn, fp, fn), average="macro")
            exact = forensics.macro_f1(tp + tn + fp + fn, fp + fn, abs(tp - tn))
            assert abs((exact - Fraction(value)) / forensics.SPACING) <= 4

    def test_all_solutions_are_found_and_no_others(self, rng):
        """Every matrix of up to 24 cases, tried one by one."""
        known: dict[Fraction, set] = {}
        for n in range(1, 25):
            for tp, tn, fp, fn in matrices(n):
                totals = (n, fp + fn, abs(tp - tn))
                known.setdefault(macro_f1_of(tp, tn, fp, fn), set()).add(totals)
        values = sorted(value for value in known if 0 < value < 1)
        for value in rng.choice(len(values), 60, replace=False):
            found = forensics.f1_totals(float(values[value]), range(1, 25))
            assert {tuple(one[:3]) for one in found} == known[values[value]]

    @pytest.mark.parametrize(("value", "rows", "errors", "imbalance"), SAVED_F1)
    def test_a_saved_score_is_of_one_number_of_slice_rows(self, value, rows, errors, imbalance):
        found = forensics.f1_totals(value, range(70_000, 105_001))
        assert [tuple(one[:3]) for one in found] == [(rows, errors, imbalance)]
        assert abs(found[0].distance) < 0.5

    @pytest.mark.parametrize(("value", "rows", "errors", "imbalance"), SAVED_F1)
    def test_scikit_learn_gives_the_saved_digits_for_those_rows(self, value, rows, errors, imbalance):
        tp, tn = (rows - errors + imbalance) // 2, (rows - errors - imbalance) // 2
        y_true, y_pred = labels_of(tp, tn, errors // 3, errors - errors // 3)
        assert f1_score(y_true, y_pred, average="macro") == value

    def test_no_saved_score_is_of_scans(self):
        """Over every matrix of 300 to 351 scans with up to 44 FN and 44 FP, straight from the definition."""
        n, errors, tp = np.meshgrid(np.arange(300, 352), np.arange(1, 89), np.arange(352), indexing="ij", sparse=True)
        tn = n - errors - tp
        with np.errstate(invalid="ignore", divide="ignore"):
            values = np.where(tn >= 0, tp / (2 * tp + errors) + tn / (2 * tn + errors), -1)
        for value, *_ in SAVED_F1:
            assert np.abs(values - value).min() > 1e-10
            assert forensics.f1_totals(value, range(1, 1685)) == []

    def test_a_digit_changed_has_no_solution(self):
        assert forensics.f1_totals(0.9361715971641709 + 1e-14, range(85_000, 95_000)) == []

    def test_chance_is_what_random_numbers_meet(self, rng):
        rows, spacings = range(250, 300), 3e8
        scores = rng.uniform(0.90, 0.96, 1200)
        met = sum(len(forensics.f1_totals(x, rows, spacings=spacings)) for x in scores)
        expected = len(scores) * forensics.f1_chance(rows, spacings=spacings)
        assert 50 < expected < 500
        assert abs(met - expected) < 5 * math.sqrt(expected)

    def test_too_few_digits_are_refused(self):
        with pytest.raises(ValueError, match="too few digits"):
            forensics.f1_totals(0.93617160, range(89_000, 89_010), spacings=0.5e-8 * 2**53)

    @pytest.mark.parametrize("score", [0.0, 1.0, 1.2, float("nan")])
    def test_scores_outside_are_refused(self, score):
        with pytest.raises(ValueError, match="between 0 and 1"):
            forensics.f1_totals(score, range(10, 20))


class TestNearest:
    """Chapter 3's cell: how near to a score any confusion matrix of so many cases comes."""

    def nearest(self, score):
        fits = pd.DataFrame([{"metric": "macro_f1", "value": score, "rows": 89_264}])
        return cells.run("03_reduction_statistics", "nearest[cases] =", fits=fits).nearest

    def test_the_nearest_score_is_the_solution(self):
        nearest = self.nearest(SAVED_F1[0][0])
        least, second = sorted(nearest, key=nearest.get)[:2]
        assert least == 89_264 and nearest[least] < 2 and nearest[second] > 100

    def test_by_brute_force(self):
        """Every matrix of n cases, by the definition; the cell is linear in imbalance², hence the few per cent."""
        score = 0.99871234567
        nearest = self.nearest(score)
        for n in (70_000, 89_264, 105_000):
            tp, errors = np.arange(n + 1), np.arange(1, 200)[:, None]
            tn = n - errors - tp
            with np.errstate(invalid="ignore", divide="ignore"):
                values = np.where(tn >= 0, tp / (2 * tp + errors) + tn / (2 * tn + errors), -1)
            assert nearest[n] * 2.0**-53 == pytest.approx(np.abs(values - score).min(), rel=0.05)


class TestAuc:
    @pytest.mark.parametrize(("value", "smaller", "larger"), SAVED_AUC)
    def test_a_saved_score_fits_one_pair_of_class_sizes(self, value, smaller, larger):
        found = forensics.auc_positives(value, 89_264, range(38_000, 46_501))
        assert {(min(one[:2]), max(one[:2])) for one in found} == {(smaller, larger)}
        assert {one.positives for one in found} == {smaller, larger}

    def test_the_true_counts_of_validation_rows(self):
        """From the mean lengths that the released notebooks print, less the 399 slices of the extra excluded scan."""
        saved = pd.read_csv(ROOT / "results/published/released_outputs.csv").set_index("group")["length_before"]
        positive = saved["Validation/Positive"] * 165 - 399
        negative = saved["Validation/Negative"] * 153
        assert (round(positive), round(negative)) == (45_890, 43_374)
        assert abs(positive - 45_890) < 1e-3 and abs(negative - 43_374) < 1e-3

    def test_scans_repeated_once_a_slice_stay_within_the_spacings_allowed(self, rng):
        """What scikit-learn returns for 318 scans of some 280 rows each, with ties, fits the true class sizes."""
        for _ in range(5):
            slices, labels = rng.integers(20, 540, 318), rng.integers(0, 2, 318)
            scores = np.where(rng.random(318) < 0.1, 0.5, np.round(rng.normal(labels, 0.6), 3))
            y, s = np.repeat(labels, slices), np.repeat(scores, slices)
            value, positives = float(roc_auc_score(y, s)), int(y.sum())
            found = forensics.auc_positives(value, len(y), range(positives - 3, positives + 4))
            assert positives in {one.positives for one in found}

    def test_pairs_are_counted_in_halves(self, rng):
        y = np.array([1, 1, 1, 0, 0, 0, 0])
        for _ in range(30):
            s = rng.integers(0, 4, 7)
            doubled = sum(2 * (a > b) + (a == b) for a, b in itertools.product(s[:3], s[3:]))
            if 0 < doubled < 24:
                fit = {one.positives: one for one in forensics.auc_positives(roc_auc_score(y, s), 7, range(1, 7))}
                assert fit[3].doubled_pairs == fit[4].doubled_pairs == doubled

    def test_chance_is_what_random_numbers_meet(self, rng):
        spacings = 1e6
        scores = rng.uniform(0.9, 0.99, 200)
        range_ = range(1000, 1101)  # no mirrored pairs in it
        met = sum(len(forensics.auc_positives(x, 2500, range_, spacings=spacings)) for x in scores)
        expected = 200 * forensics.auc_chance(2500, range_, spacings=spacings)
        assert 5 < expected < 500
        assert abs(met - expected) < 5 * math.sqrt(expected)


class TestLengths:
    def test_the_width_by_cutting_a_list(self):
        for n in range(1, 900):
            left = list(range(n))[20:-20] if n < 60 else list(range(n))[20:-45]
            assert forensics.trimmed_width(n) == math.ceil(len(left) / 2)

    def test_known_widths(self):
        assert [forensics.trimmed_width(n) for n in (59, 65, 81)] == [10, 0, 8]
        assert forensics.lengths_of_width(0) == [*range(1, 41), *range(60, 66)]
        assert forensics.lengths_of_width(167) == [398, 399]

    def test_lengths_are_the_inverse_of_the_width(self):
        for width in range(200):
            expected = [n for n in range(1, 1000) if forensics.trimmed_width(n) == width]
            assert forensics.lengths_of_width(width) == expected


class TestTouched:
    @pytest.mark.parametrize(("lengths", "sampled"), [([1, 2, 3], 2), ([4, 1, 1, 2], 3), ([5], 2), ([3, 3], 6)])
    def test_by_every_possible_draw(self, lengths, sampled):
        scan = np.repeat(np.arange(len(lengths)), lengths)
        draws = list(itertools.combinations(scan, sampled))
        mean = np.mean([len(set(draw)) for draw in draws]) / len(lengths)
        assert forensics.touched(lengths, sampled) == pytest.approx(mean, abs=1e-12)

    def test_many_rows_follow_the_closed_form(self, rng):
        n = rng.integers(20, 600, 1349)
        for fraction in (0.01, 0.03, 0.1):
            exact = forensics.touched(n, round(fraction * n.sum()))
            assert exact == pytest.approx(np.mean(1 - (1 - fraction) ** n), abs=2e-4)

    def test_bounds_hold_every_assignment(self):
        groups = {(1, 2, 9): 2, (4, 8): 1, (3,): 2}
        shares = {}
        for a, b, c in itertools.product((1, 2, 9), (1, 2, 9), (4, 8)):
            n = np.array([a, b, c, 3, 3])
            shares.setdefault(n.sum(), []).append(np.mean(1 - 0.9**n))
        for total, values in shares.items():
            low, high = forensics.touched_bounds(groups, int(total), 0.1)
            assert low <= min(values) + 1e-12 and high >= max(values) - 1e-12
        low, high = forensics.touched_bounds({(5,): 3}, 15, 0.1)
        assert low == pytest.approx(1 - 0.9**5) and high == pytest.approx(1 - 0.9**5)

    def test_what_cannot_be_is_refused(self):
        with pytest.raises(ValueError, match="make 99 slices"):
            forensics.touched_bounds({(1, 2): 3}, 99, 0.1)
        with pytest.raises(ValueError, match="cannot draw 9 of 3 rows"):
            forensics.touched([1, 2], 9)
        with pytest.raises(ValueError, match="0 scans"):
            forensics.touched([], 0)
