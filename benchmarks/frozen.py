"""The frozen tier on runs' cohorts: the whole factorial with the scan head, a stated tenth of it with the slice head.

e2d run --profile ablation --only 01,02
e2d run --profile ablation --only 01,02 -p 01.seed=1 --out results/ablation-1
python benchmarks/frozen.py results/ablation results/ablation-1 --out results/frozen      # half an hour on two cores
e2d sweep anchors
python benchmarks/frozen.py --anchors results/ablation/ablations/anchors/comparison.csv --out results/frozen
"""

import argparse
import time
from pathlib import Path

import joblib
import pandas as pd

from e2d_lib import io
from e2d_lib.evaluation import frozen, multirun
from e2d_lib.figures import intervals
from e2d_lib.study.chapter import RunFolder

TENTH = {
    "method": frozen.AXES["method"],
    "n_intervals": frozen.AXES["n_intervals"],
    "fraction": (0.5, 0.3, 0.7, 1.0),
    "crop": (True, False),
    "few_shot": (1.0, 0.3, 0.1, 0.03),
}
"""The slice head's part: 192 of 1,792 settings, in which every axis but the number of slices still varies."""


def fit(run: Path, head: frozen.Head, replicates: int) -> tuple[frozen.Tier, float]:
    """The tier on one run's cohort, and the seconds it took, extraction included where it is not there yet."""
    folder, start = RunFolder(run), time.perf_counter()
    done = folder.preprocessed(wait=True)
    axes = frozen.AXES if head == "scan" else TENTH
    how = {"head": head, "replicates": replicates, "n_jobs": 1}
    return frozen.study(folder.cohort, done.folder.parent, done.params, axes, **how), time.perf_counter() - start


def beside(heads: dict[str, list[frozen.Tier]]) -> pd.DataFrame:
    """What each choice changes by either head, on the slice head's settings: one row an effect of `frozen.effects`."""
    wanted = heads["slice"][0].settings
    both = {}
    for head, tiers in heads.items():
        places = wanted.merge(tiers[0].settings.reset_index(), how="left")["index"]
        both[head] = frozen.effects([tier._replace(settings=wanted, scores=tier.scores[places]) for tier in tiers])
    keys = ["scope", "axis", "level", "baseline", "few_shot", "metric", "settings"]
    return both["scan"].merge(both["slice"], on=keys, suffixes=("_scan_head", "_slice_head"))


CHOICES = {"random draws": ("method", "random"), "no crop": ("crop", "False"), "whole scan": ("fraction", "1.0")}
"""Cells of the grid `anchors`, as axis and level of the frozen effects."""


def trained(comparison: pd.DataFrame, effects: pd.DataFrame) -> pd.DataFrame:
    """The grid's differences beside the frozen tier's at the paper's setting, one row a choice, share and metric."""
    rows = []
    for one in comparison[comparison["difference"].notna()].itertuples():
        choice, _, few = one.cell.partition(", ")
        if choice not in CHOICES or one.metric not in multirun.METRICS:
            continue
        axis, level = CHOICES[choice]
        share = 0.1 if few else 1.0
        alike = effects["scope"].eq("paper") & effects["axis"].eq(axis) & effects["level"].astype(str).eq(level)
        alike &= effects["few_shot"].astype(float).eq(share) & effects["metric"].eq(one.metric)
        row = {"choice": choice, "few_shot": share, "metric": one.metric, "trained": one.difference}
        row |= {"trained_low": one.difference_low, "trained_high": one.difference_high, "trained_p_holm": one.p_holm}
        row |= {"trained_detectable": one.detectable, "baseline_trained": one.value - one.difference}
        frozen_one = effects[alike].squeeze()
        row |= {"baseline_frozen": frozen_one["baseline_value"], "frozen": frozen_one["difference"]}
        row |= {f"frozen_{name}": frozen_one[name] for name in ("low", "high", "p_holm", "detectable")}
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="runs whose chapters 1 and 2 are done")
    parser.add_argument("--out", type=Path, default=Path("results/frozen"))
    parser.add_argument("--replicates", type=int, default=10)
    parser.add_argument("--heads", nargs="+", default=["scan", "slice"], choices=["scan", "slice"])
    parser.add_argument("--jobs", type=int, default=2, help="cohorts at a time")
    parser.add_argument("--anchors", type=Path, help="comparison.csv of the grid anchors, to lie beside effects.csv")
    arguments = parser.parse_args()
    if arguments.anchors:
        table = trained(pd.read_csv(arguments.anchors), pd.read_csv(arguments.out / "effects.csv"))
        io.write_csv(arguments.out / "anchors.csv", table.round(5))
    heads = {}
    for head in arguments.heads if arguments.runs else ():
        one = joblib.delayed(fit)
        found = joblib.Parallel(arguments.jobs)(one(run, head, arguments.replicates) for run in arguments.runs)
        heads[head] = [tier for tier, _ in found]
        for run, (tier, seconds) in zip(arguments.runs, found, strict=True):
            fits = len(tier.settings) * arguments.replicates
            print(
                f"{run}, {head} head: {fits:,} fits of {len(tier.settings):,} settings in {seconds:.0f} s", flush=True
            )
        if head == "scan":
            parts = [
                frozen.summary(tier).assign(cohort=run.name)
                for run, tier in zip(arguments.runs, heads[head], strict=True)
            ]
            io.write_csv(arguments.out / "settings.csv", pd.concat(parts).round(4))
            effects = frozen.effects(heads[head])
            io.write_csv(arguments.out / "effects.csv", effects.round(5))
            io.write_figure(arguments.out / "effects.png", intervals.frozen_effects(effects))
    if len(heads) == 2:
        io.write_csv(arguments.out / "heads.csv", beside(heads).round(5))


if __name__ == "__main__":
    main()
