"""How often a difference is found where there is none, and where there is one: over scans alone, or replicates too.

python benchmarks/false_positives.py results/frozen/false_positives.csv     # a minute or two on one core
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from e2d_lib import io
from e2d_lib.evaluation.metrics import Runs, runs
from e2d_lib.evaluation.multirun import test


def simulate(
    *,
    replicates: int,
    seed_sd: float,
    shift: float = 0.0,
    n: tuple[int, int] = (60, 60),
    auc: float = 0.87,
    times: int = 2000,
    rng: np.random.Generator,
) -> pd.Series:
    """Share of comparisons with p < 0.05 of two settings whose ROC AUC differs by ``shift``: nominal (DeLong's test of
    the mean AUCs over scans alone) and counting replicates.

    Scores are normal within each class; a scan has its own deviation (the same in all runs), a run of a scan another.
    seed_sd: SD of a run's true AUC. The runs of the two settings share nothing but the scans.
    """
    labels = np.repeat([1, 0], n)
    found = []
    for _ in range(times):
        true = auc + np.repeat([0.0, shift], replicates) + seed_sd * rng.standard_normal(2 * replicates)
        apart = np.sqrt(2) * norm.ppf(np.clip(true, 0.5, 0.999))
        scan, own = rng.standard_normal(len(labels)), rng.standard_normal((2 * replicates, len(labels)))
        scores = np.sqrt(0.8) * scan + np.sqrt(0.2) * own + apart[:, None] * labels
        both = runs(labels, scores)
        paired = Runs(both.values[replicates:], both.parts[replicates:]) - Runs(
            both.values[:replicates], both.parts[:replicates]
        )
        alone = Runs(paired.values.mean(keepdims=True), paired.parts.mean(0, keepdims=True))
        found.append({"nominal": test(alone)["p_value"] < 0.05, "counted": test(paired)["p_value"] < 0.05})
    return pd.DataFrame(found).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a CSV file")
    parser.add_argument("--times", type=int, default=4000, help="comparisons simulated for each row")
    arguments = parser.parse_args()
    rows = []
    for shift, seed_sd, replicates in itertools.product((0.0, 0.04), (0.0, 0.018, 0.032), (2, 5, 10)):
        rng = np.random.default_rng([int(1000 * shift), int(1000 * seed_sd), replicates])
        found = simulate(replicates=replicates, seed_sd=seed_sd, shift=shift, times=arguments.times, rng=rng)
        rows.append({"difference": shift, "seed_sd": seed_sd, "replicates": replicates, **found})
        print(rows[-1], flush=True)
    io.write_csv(arguments.out, pd.DataFrame(rows))


if __name__ == "__main__":
    main()
