"""Break one line at a time and see whether the tests notice: `python tests/breakages.py [--only NAME] [--run FOLDER]`.

Run by hand, not by pytest. Each breakage is put into a copy of the checkout, its tests are run there, and the score is
told; the exit status is 1 if fewer than nine of ten are noticed. A broken notebook is executed again, alone, on a copy
of a finished ci run: the one in --run, else one made first.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import nbformat

ROOT = Path(__file__).resolve().parents[1]
LEAST = 0.9


class Breakage(NamedTuple):
    """``old``, found exactly once in the file (in a notebook: in its cells), becomes ``new``; ``tests`` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


def chapter(name: str, stem: str, old: str, new: str) -> Breakage:
    """A breakage of a notebook, which its own test file must notice, or for chapter 8 that of its cells."""
    tests = f"tests/notebooks/test_{stem}.py" + " tests/evaluation/test_sources.py" * (stem == C8)
    return Breakage(f"{stem[:2]}-{name}", f"notebooks/{stem}.ipynb", old, new, tests)


def figure(name: str, where: str, old: str, new: str) -> Breakage:
    """A breakage of a figure, which the tests of its module, or of the chapter's cells, must notice."""
    if where[0].isdigit():
        return Breakage(f"fig-{name}", f"notebooks/{where}.ipynb", old, new, "tests/figures/test_cells.py")
    tests = f"tests/figures/test_{where}.py" if where in ("intervals", "curves") else "tests/figures"
    return Breakage(f"fig-{name}", f"e2d_lib/figures/{where}.py", old, new, tests)


C1, C2, C3, C4 = "01_data_exploration", "02_ssflpp_preprocessing", "03_reduction_statistics", "04_training"
C5, C6, C7, C8 = "05_evaluation", "06_ablations", "07_generalizability", "08_across_sources"

BREAKAGES = [
    chapter("classes", C1, 'positive=int(cohort["label"].eq(1)', 'positive=int(cohort["label"].eq(0)'),
    chapter("short", C1, 'short_scans=int((scans["n_slices"] < 5)', 'short_scans=int((scans["n_slices"] >= 5)'),
    chapter("folds", C1, 'positive=("label", "sum")', 'positive=("label", "size")'),
    chapter("said", C1, "{int(cohort['label'].eq(1).sum()):,} positive", "{len(cohort):,} positive"),
    chapter("share", C2, "crop leaves {spatial.mean():.1%}", "crop leaves {1 - spatial.mean():.1%}"),
    chapter("area", C2, "area_kept=estimate(spatial.mean()", "area_kept=estimate(1 - spatial.mean()"),
    chapter("kept", C2, 'kept = done.scans[done.scans["status"] != "excluded"]', "kept = done.scans"),
    chapter("agree", C3, 'wrong = cells[~cells["agrees"]]', 'wrong = cells[cells["agrees"]]'),
    chapter("row", C3, 'exact["n_scans"].idxmax()', 'exact["n_scans"].idxmin()'),
    chapter("claim", C3, 'published.set_index("row").loc["Total"]', 'published.set_index("row").loc["Testing"]'),
    chapter("confirmed", C3, '["holds"].eq(True).sum()', '["holds"].eq(False).sum()'),
    chapter("last", C4, "sort=False).tail(1)", "sort=False).head(1)"),
    chapter("swapped", C5, "scoring.paired(few, main,", "scoring.paired(main, few,"),
    chapter("confusion", C5, "(probabilities >= threshold).astype(int)", "(probabilities < threshold).astype(int)"),
    chapter("wrong", C5, "[(probabilities >= threshold) != labels]", "[(probabilities >= threshold) == labels]"),
    chapter("learnt", C5, 'kept["loss"] < np.log(2)', 'kept["loss"] > np.log(2)'),
    chapter("policy", C5, 'use["threshold"], use[policy]', 'use["threshold"], use["network"]'),
    chapter("prevalence", C5, 'prevalence=scan_scores["label"].mean()', 'prevalence=1 - scan_scores["label"].mean()'),
    chapter("clear", C5, 'against_mean["p_holm"] < 0.05', 'against_mean["p_holm"] > 0.05'),
    chapter("fewest", C5, '== scores["fraction"].min()]', '== scores["fraction"].max()]'),
    chapter("spaced", C6, 'quality, baseline="spaced", rng', 'quality, baseline="kds", rng'),
    chapter("first", C6, '"metric"]).loc["as set"]', '"metric"]).loc["method = random"]'),
    chapter("sign", C6, "(row.metric)} {row.difference:+.3f}", "(row.metric)} {-row.difference:+.3f}"),
    chapter("hold", C7, "~broken.any(axis=1)", "~broken.all(axis=1)"),
    chapter("broken", C7, 'spoilt[views].ne("")', 'spoilt[views].eq("")'),
    chapter("removed", C7, "whole.loc[view, 'total_delta']:.1%", "1 - whole.loc[view, 'total_delta']:.1%"),
    chapter("empty", C7, "{empty[view]:.0%}", "{1 - empty[view]:.0%}"),
    chapter("costs", C8, "auc_difference(of[first], of[second],", "auc_difference(of[second], of[first],"),
    chapter("told", C8, '== scans["source"]).sum()', '!= scans["source"]).sum()'),
    chapter("least", C8, '.sort_values("sensitivity").iloc[0]', '.sort_values("sensitivity").iloc[-1]'),
    chapter("absent", C8, 'challenge["absent_class"] == "left out"', 'challenge["absent_class"] != "left out"'),
    Breakage("decay", "e2d_lib/network/training.py", "weight_decay=recipe.weight_decay", "weight_decay=0.3",
             "tests/network/test_training.py -k decay"),
    Breakage("words", f"notebooks/{C6}.ipynb", 'tested["p_holm"] < 0.05]', 'tested["p_holm"] < 0.5]',
             "tests/evaluation/test_ablation.py -k words"),
    Breakage("key", "e2d_lib/study/notebook.py", "self._cells, values, library_hash()]", "self._cells, values]",
             "tests/study/test_runner.py -k library"),
    Breakage("size", "e2d_lib/method/preprocess.py", 'report["bytes"] / max(parts["originals"], 1)',
             'max(parts["originals"], 1) / report["bytes"]', "tests/method/test_preprocess.py -k size_report"),
    figure("value", "intervals", 'axis.plot(own["value"], y,', 'axis.plot(own["low"], y,'),
    figure("ends", "intervals", 'axis.hlines(y, own["low"], own["high"]', 'axis.hlines(y, own["value"], own["high"]'),
    figure("hollow", "intervals", 'face = self.colour if self.filled else "white"',
           'face = "white" if self.filled else self.colour'),
    figure("order", "intervals", "ylim=(len(names) - 0.4, -0.6)", "ylim=(-0.6, len(names) - 0.4)"),
    figure("series", "intervals", 'own, look = part[part["series"] == one]', 'own, look = part[part["series"] != one]'),
    figure("published", C3, 'value=shown["published"], low', 'value=shown["measured"], low'),
    figure("negated", C5, 'row=row, value=comparison["difference"])', 'row=row, value=-comparison["difference"])'),
    figure("effects", "intervals", 'series, value=table["difference"])', 'series, value=-table["difference"])'),
    figure("p-value", C5, 'f" (p = {p:.2g})"', 'f" (p = {1 - p:.2g})"'),
    figure("better", C5, '"lower is better", "higher is better")', '"higher is better", "lower is better")'),
    figure("chosen", C5, "intervals.Look(style.BLUE), intervals.Look(style.ORANGE, filled=False)",
           "intervals.Look(style.BLUE, filled=False), intervals.Look(style.ORANGE)"),
    figure("holm", "intervals", '[first, table["p_holm"].lt(0.05)', '[first, table["p_holm"].lt(0.5)'),
    figure("not-holm", "intervals", 'where(table["p_holm"].lt(0.05)', 'where(table["p_holm"].gt(0.05)'),
    figure("share", C5, '[f"{100 * fraction:g} %" for', '[f"{fraction:g} %" for'),
    figure("counted", C5, "Look(colours[data], marks", "Look(style.DARK, marks"),
    figure("roc", C5, "left.plot(fpr, tpr,", "left.plot(tpr, fpr,"),
    figure("recall", C5, "right.step(recall, precision,", "right.step(precision, recall,"),
    figure("prevalence", C5, "right.axhline(labels.mean()", "right.axhline(1 - labels.mean()"),
    figure("window", "curves", "axis.axvspan(start - 0.5, stop - 0.5", "axis.axvspan(start, stop"),
    figure("quartiles", C2, "[25, 50, 75]", "[5, 50, 95]"),
    figure("often", C2, "minlength=len(widest)) / 400", "minlength=len(widest))"),
    figure("drawn", C2, 'right.plot(drawn, widest[drawn], "o"', 'right.plot(drawn, widest[: len(drawn)], "o"'),
    figure("bound", C7, "TwoSlopeNorm(bound, 0, 1)", "TwoSlopeNorm(0.5, 0, 1)"),
    figure("epochs", C4, '("valid_loss", "valid_auc", "valid_f1")', '("valid_loss", "valid_f1", "valid_auc")'),
    figure("stack", C1, "[by_label[name] for name in looks]", "[by_label[name] for name in reversed(looks)]"),
    figure("grey", C1, "counts / counts.sum()", "counts / len(counts)"),
    figure("fullest", C7, "lungs.sum((1, 2)).argmax()", "lungs.sum((1, 2)).argmin()"),
    figure("sampler", C6, '"kds": style.ORANGE', '"kds": style.GREY'),
    figure("by-source", C5, 'row=scan_scores["source"].replace("", "unknown"), value=probabilities',
           'row=scan_scores["source"].replace("", "unknown"), value=1 - probabilities'),
    figure("lung", "images", "binary_fill_holes(body) & ~body", "binary_fill_holes(body)"),
    figure("mask", "images", "np.ma.masked_where(~holes, holes)", "np.ma.masked_where(holes, ~holes)"),
    figure("removed", "images", "removed = 1 - (box[1]", "removed = (box[1]"),
    figure("box", "images", "row0, row1, col0, col1 = box\n", "col0, col1, row0, row1 = box\n"),
    figure("opacity", C5, "0.75 * heat[number]", "0.75 * (1 - heat[number])"),
    figure("crop", C2, "image[row0:row1, col0:col1]", "image[col0:col1, row0:row1]"),
    figure("labels", "style", 'LABEL_NAMES = {0: "negative", 1: "positive"}',
           'LABEL_NAMES = {0: "positive", 1: "negative"}'),
    figure("red-green", "style", '"#0072b2", "#d55e00"', '"#3a7d44", "#c8553d"'),
    figure("legend", "style", 'loc="outside lower center"', 'loc="center"'),
]  # fmt: skip


def broken(path: Path, breakage: Breakage) -> str:
    """The file's text with the breakage in it. Raises SystemExit unless ``old`` is there exactly once."""
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4) if path.suffix == ".ipynb" else None
    found = sum(c.source.count(breakage.old) for c in notebook.cells) if notebook else text.count(breakage.old)
    if found != 1:
        sys.exit(f"{breakage.name}: {breakage.old!r} is {found} times in {breakage.file}, expected once: mend the list")
    if notebook is None:
        return text.replace(breakage.old, breakage.new)
    for cell in notebook.cells:
        cell.source = cell.source.replace(breakage.old, breakage.new)
    return nbformat.writes(notebook)


def noticed(breakage: Breakage, tree: Path, base: Path) -> bool:
    """Whether the tests fail in ``tree`` with the breakage in it; the tree is whole again afterwards."""
    path = tree / breakage.file
    whole = path.read_text(encoding="utf-8")
    run = base
    try:
        path.write_text(broken(path, breakage), encoding="utf-8")
        if path.suffix == ".ipynb" and "notebooks" in breakage.tests:
            run = tree.parent / "run"
            shutil.copytree(base, run)
            if study(tree, run, "--only", path.stem[:2]) != 0:
                return True  # the notebook stops: `make study` and the suite do too
        return python(tree, run, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *breakage.tests.split()) == 1
    finally:
        path.write_text(whole, encoding="utf-8")
        if run != base:
            shutil.rmtree(run, ignore_errors=True)


def python(tree: Path, run: Path, *arguments: str) -> int:
    """Exit status of Python in the copy, with the copy's library and the given run."""
    environment = os.environ | {"PYTHONPATH": str(tree), "E2D_TEST_RUN": str(run), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=tree, env=environment, capture_output=True).returncode


def study(tree: Path, run: Path, *more: str) -> int:
    return python(tree, run, "-m", "e2d_lib", "run", "--profile", "ci", "--out", str(run), "--quiet", *more)


def copied(tree: Path) -> None:
    """The checkout's files that git tracks or would, as they are now."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file() and not name.startswith(".venv"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="names, or how they begin")
    parser.add_argument("--run", type=Path, help="a finished ci run of this checkout")
    options = parser.parse_args()
    chosen = [b for b in BREAKAGES if not options.only or b.name.startswith(tuple(options.only))]
    if not chosen:
        sys.exit(f"no breakage {options.only}: there are {', '.join(b.name for b in BREAKAGES)}")
    for breakage in BREAKAGES:
        broken(ROOT / breakage.file, breakage)
    with tempfile.TemporaryDirectory(prefix="breakages-") as folder:
        tree = Path(folder) / "tree"
        copied(tree)
        base = options.run.resolve() if options.run else Path(folder) / "base"
        if any("notebooks" in b.tests for b in chosen):
            if not options.run and study(tree, base) != 0:
                sys.exit("the ci run failed without any breakage")
            for tests in sorted({b.tests for b in chosen if "notebooks" in b.tests}):
                if python(tree, base, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests.split()) != 0:
                    sys.exit(f"{tests} fails without any breakage")
        results = {}
        for breakage in chosen:
            results[breakage.name] = noticed(breakage, tree, base)
            print(f"{'killed' if results[breakage.name] else 'SURVIVED':9}{breakage.name}", flush=True)
    print(f"{sum(results.values())} of {len(results)} noticed")
    return 0 if sum(results.values()) >= LEAST * len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
