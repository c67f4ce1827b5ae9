"""The phantom measured: seconds a scan, the reduction table, a mean-intensity classifier, a sheet beside real slices.

python benchmarks/phantom.py speed                       one 512 x 512 x 300 scan on one core
python benchmarks/phantom.py shape --scans 148 --matrix 128   area curves beside patients', by Kolmogorov distance
python benchmarks/phantom.py reduction --scans 200       SSFL++ on a sample of each scan's slices
python benchmarks/phantom.py intensity --scans 120       AUC of mean intensities as scores
python benchmarks/phantom.py masks --scans 240 --matrix 128   AUC of a network that sees the lungs' outlines alone
python benchmarks/phantom.py difficulty --weights FILE   the paper's network on all scans and on a tenth, three seeds
python benchmarks/phantom.py sheet --out sheet.png --real ../shared/data/tcia-covid-19-ny-sbu
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import joblib
import numpy as np
import pandas as pd

from e2d_lib.evaluation import ablation, metrics
from e2d_lib.method import curves, ssfl
from e2d_lib.phantom import phantom
from e2d_lib.scans import cohort, readers

PAPER = {"spatial": 0.4182, "slices": 0.4983, "total": 0.7082}
"""Reductions of the published table's Total row (method.md §6)."""


def speed(arguments: argparse.Namespace) -> None:
    """Rendering and writing one scan, on one core."""
    cv2.setNumThreads(1)
    n = arguments.slices or 300
    with tempfile.TemporaryDirectory() as folder:
        options = {"n_scans": 1, "positive": 1.0, "n_jobs": 1}
        phantom.write(Path(folder) / "warm", **options, matrix=64, slices=(2, 2))
        wall, cpu = time.perf_counter(), time.process_time()
        phantom.write(Path(folder) / "scan", **options, matrix=arguments.matrix, slices=(n, n))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{arguments.matrix} x {arguments.matrix} x {n}: {wall:.1f} s, {cpu:.1f} s of CPU")


def _patient(index: int, matrix: int, n_slices: int) -> phantom.Patient:
    """Patient ``index`` of a cohort that takes hospitals and labels in turn."""
    seed = np.random.SeedSequence(0, spawn_key=(9, index))
    return phantom.Patient(seed, matrix=matrix, n_slices=n_slices, positive=bool(index // 4 % 2), source=index % 4)


def _sampled(n: int, sample: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(sample, n)).round().astype(int))


def _reduce(index: int, matrix: int, sample: int) -> dict[str, float]:
    """One scan's reductions. The length is drawn as a cohort's are; areas are measured on ``sample`` of the slices."""
    cv2.setNumThreads(1)
    n = _length(index)
    patient = _patient(index, matrix, n)
    measured = [ssfl.measure(patient.image(k)) for k in _sampled(n, sample)]
    boxes = np.array([m.box for m in measured])
    kept = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
    areas = np.array([m.area for m in measured], float)
    half = areas > areas.max() / 2
    return {
        "positive": index // 4 % 2,
        "source": index % 4,
        "slices": n,
        "measured": len(areas),
        "area_delta": (1 - kept / matrix**2).mean(),
        "area_after": kept.mean(),
        "length_after": math.ceil(n / 2),
        "length_delta": 1 - math.ceil(n / 2) / n,
        "humps": np.count_nonzero(np.diff(np.r_[0, half, 0].astype(int)) == 1),
        "middle": ssfl.slice_window(areas, 0.5)[0] / len(areas) + 0.25,
    }


def _length(index: int) -> int:
    """Slices of scan ``index`` where a cohort's span is that of patients, 5th to 95th percentile."""
    low, high = phantom.SOURCES[index % 4].counts
    return round(42 + 371 * np.random.default_rng((1, index)).uniform(low, high))


def _curve(index: int, matrix: int, n: int) -> dict[str, np.ndarray]:
    cv2.setNumThreads(1)
    patient = _patient(index, matrix, n)
    return {"areas": np.array([ssfl.measure(patient.image(k)).area for k in range(n)])}


def shape(arguments: argparse.Namespace) -> None:
    """Chapter 3's measures of area curves: beside the even scans it was fitted to, the odd ones and 2024."""
    n = arguments.slices or 32
    real = curves.real("results/published/real_areas")
    made = _parallel(lambda i: _curve(i, arguments.matrix, n), arguments)["areas"]
    groups = {"phantom": curves.shapes(dict(enumerate(made)), arguments.matrix**2)}
    groups["phantom"]["n_slices"] = [_length(arguments.first + i) for i in range(len(groups["phantom"]))]
    for name, scans in (("even", real.of(2025)[0::2]), ("odd", real.of(2025)[1::2])):
        table = curves.shapes({scan: curves.thinned(real.curves[scan], n) for scan in scans})
        groups[name] = table.assign(n_slices=[len(real.curves[scan]) for scan in table["scan_id"]])
    thin = [curves.thinned(real.windows[scan], -(-n // 2)).astype(float) for scan in real.of(2024, least=8)]
    in_2024 = pd.DataFrame([curves.window_shape(window) for window in thin]).dropna()
    groups["2024"] = in_2024.reindex(columns=groups["even"].columns)
    table = curves.compared(groups, to="phantom").pivot(index="quantity", columns="group")
    print(f"{len(made)} scans, {n} slices each, {arguments.matrix} pixels")
    shown = {f"ks {name}": table["ks"][name] for name in ("even", "odd", "2024")}
    shown |= {f"{name} {what}": table[what][name] for name in ("phantom", "even") for what in ("low", "median", "high")}
    print(pd.DataFrame(shown).reindex(curves.QUANTITIES).round(3).to_string())


def reduction(arguments: argparse.Namespace) -> None:
    scans = _parallel(lambda i: _reduce(i, arguments.matrix, arguments.slices or 24), arguments)
    before = arguments.matrix**2 * scans["slices"].mean()
    spatial, length = scans["area_delta"].mean(), scans["length_delta"].mean()
    total = 1 - scans["area_after"].mean() * scans["length_after"].mean() / before
    print(f"{len(scans)} scans, {scans['measured'].sum()} slices measured of {scans['slices'].sum()}")
    for name, value in (("spatial", spatial), ("slices", length), ("total", total)):
        print(f"  {name:8} {value:.4f}   paper {PAPER[name]:.4f}")
    print(f"  spatial by scan: sd {scans['area_delta'].std():.3f}, by hospital and class:")
    print(scans.pivot_table(index="source", columns="positive", values="area_delta").round(3).to_string())
    print(f"  area curves with one run above half their peak: {(scans['humps'] == 1).sum()} of {len(scans)}")
    print(f"  window's middle: {scans['middle'].min():.2f} to {scans['middle'].max():.2f} of the scan")


def _intensities(index: int, matrix: int) -> dict[str, float]:
    cv2.setNumThreads(1)
    patient = _patient(index, matrix, 16)
    rendered = [patient.render(k) for k in range(16)]
    slices = [(patient.export(hu), mask) for hu, mask in rendered]
    measured = [ssfl.measure(image) for image, _ in slices]
    start, stop = ssfl.slice_window(np.array([m.area for m in measured]), 0.5)
    crops, lungs = [], []
    for (image, mask), m in list(zip(slices, measured, strict=True))[start:stop]:
        row0, row1, column0, column1 = m.box
        crops.append(image[row0:row1, column0:column1].mean())
        lungs.append(image[mask > 0])
    lung = np.concatenate(lungs)
    return {
        "label": index // 4 % 2,
        "crop": np.mean(crops),
        "lung": lung.mean(),
        "area": -np.mean([m.area for m in measured]),
    }


def intensity(arguments: argparse.Namespace) -> None:
    from sklearn.metrics import roc_auc_score

    scans = _parallel(lambda i: _intensities(i, arguments.matrix), arguments)
    for name, what in (("crop", "mean of the crop"), ("lung", "mean of the true lung"), ("area", "small lung area")):
        print(f"  {what:22} AUC {roc_auc_score(scans['label'], scans[name]):.3f}")


def _seen(index: int, matrix: int, size: int) -> dict[str, np.ndarray]:
    """Eight slices of the middle half of a scan, and their lung masks, as a network sees them."""
    cv2.setNumThreads(1)
    patient = _patient(index, matrix, 16)
    rendered = [patient.render(k) for k in range(4, 12)]
    pairs = [(patient.export(hu), np.where(mask > 0, 255, 0).astype(np.uint8)) for hu, mask in rendered]
    seen = [[cv2.resize(one, (size, size), interpolation=cv2.INTER_AREA) for one in pair] for pair in pairs]
    return {"label": index // 4 % 2, "slices": np.array(seen)}


def masks(arguments: argparse.Namespace) -> None:
    """Whether the shape of the lungs gives the label away: frozen features of masks, beside those of the slices."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from e2d_lib.network import features

    scans = _parallel(lambda i: _seen(i, arguments.matrix, arguments.size), arguments)
    labels, slices = scans["label"].to_numpy(), np.stack(scans["slices"])  # (n, 8, 2, size, size)
    net = features.frozen_network("tf_efficientnet_lite2", "package", size=arguments.size)
    for column, what in enumerate(("slices", "lung masks alone")):
        seen = torch.from_numpy(np.ascontiguousarray(slices[:, :, column]))
        means = np.stack([features.forward(net, one[:, None]).float().mean(0).cpu().numpy() for one in seen])
        head = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=1000))
        found = cross_val_predict(head, means, labels, cv=5, method="predict_proba")[:, 1]
        auc = (
            metrics.pooled(
                pd.DataFrame({"scan_id": scans.index.astype(str), "label": labels, "probability": found, "seed": 0}),
                rng=np.random.default_rng(0),
            )
            .set_index("metric")
            .loc["roc_auc"]
        )
        print(f"  {what:22} AUC {auc['value']:.3f} ({auc['low']:.3f}-{auc['high']:.3f}) on {len(labels)} scans")


def difficulty(arguments: argparse.Namespace) -> None:
    """Validation AUC of E2D by seed, on all of 280 scans' training part and on a tenth of it. Resumes where it left."""
    folder = arguments.out or Path("results/difficulty")
    options = {"n_scans": 280, "matrix": 128, "slices": (24, 40), "valid": 0.3, "dirt": False, "seed": 2024}
    phantom.write(folder / "cohort", **options, n_jobs=arguments.jobs)
    scans = cohort.assign_folds(cohort.read_cohort(folder / "cohort"), n_folds=4)
    setting = ablation.Setting(
        preprocessing={"size": arguments.size},
        backbone=arguments.backbone,
        pretrained=str(arguments.weights) if arguments.weights else False,
        recipe={"select": "last", "epochs": arguments.epochs, "lr": arguments.lr, "scans_per_step": 8},
    )
    print(f"{arguments.backbone} from {arguments.weights or 'scratch'}, {arguments.size} px, {arguments.epochs} epochs")
    for share in (1.0, 0.1):
        for seed in arguments.seeds:
            places = {"cache": folder / "cache", "runs": folder / "runs"}
            result = ablation.run(setting.but(few_shot=share), scans, **places, seeds=[seed], n_jobs=arguments.jobs)
            scored = result.scores.drop(columns="draw")
            auc = metrics.pooled(scored, rng=np.random.default_rng(0)).set_index("metric").loc["roc_auc"]
            n = result.runs["train"].iloc[0]
            print(
                f"  {share:4.0%} ({n} scans), seed {seed}: AUC {auc['value']:.3f} ({auc['low']:.3f}-{auc['high']:.3f}) "
                f"on {len(scored)} scans",
                flush=True,
            )


SHEET = (
    # real slice, level of about the same organs (mm in lung space), seed, hospital, positive
    ("A002304_19001231-076.dcm", 122, 15, 0, True),
    ("A002304_19010112-135.dcm", 118, 61, 0, True),
    ("A027284_19000925-116.dcm", 10, 12, 0, False),
    ("A027284_19001231-131.dcm", 0, 9, 3, False),
    ("A046441_19001111-045.dcm", 150, 68, 0, True),
    ("A046441_19010101-23.dcm", 140, 134, 2, True),
    ("A048383_19001231-30.dcm", 140, 18, 0, False),
    ("A048383_19010410-30.dcm", 148, 5, 0, False),
    ("A056642_19001229-053.dcm", 126, 55, 3, True),
    ("A056642_19010107-111.dcm", 130, 17, 1, True),
)


def sheet(arguments: argparse.Namespace) -> None:
    """Real slices above, phantom slices of about the same levels below; phantom alone without ``--real``."""
    rows, side = [], 384
    for at in range(0, len(SHEET), 5):
        real, made = [], []
        for name, level, seed, source, positive in SHEET[at : at + 5]:
            patient = phantom.Patient(seed, matrix=512, n_slices=200, positive=positive, source=source)
            made.append(patient.image(int(np.argmin(np.abs(patient.levels - patient._level_of(level, False))))))
            if arguments.real:
                real.append(readers.open_scan({"path": str(arguments.real / name), "format": "dicom"}).read(0))
        for images in filter(None, (real, made)):
            rows.append(np.hstack([cv2.resize(i, (side, side), interpolation=cv2.INTER_AREA) for i in images]))
    cv2.imwrite(str(arguments.out or "phantom_sheet.png"), np.vstack(rows))


def _parallel(one: Callable[[int], dict], arguments: argparse.Namespace) -> pd.DataFrame:
    jobs = joblib.Parallel(n_jobs=arguments.jobs)
    return pd.DataFrame(jobs(joblib.delayed(one)(i) for i in range(arguments.first, arguments.first + arguments.scans)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "shape", "reduction", "intensity", "masks", "difficulty", "sheet"))
    parser.add_argument("--scans", type=int, default=40)
    parser.add_argument("--first", type=int, default=0, help="the first scan, to do a cohort in parts")
    parser.add_argument("--slices", type=int, default=0, help="speed: of the scan; shape, reduction: measured in each")
    parser.add_argument("--matrix", type=int, default=512)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--real", type=Path, help="folder of the real DICOM slices")
    parser.add_argument("--out", type=Path, help="sheet: a PNG file; difficulty: a folder (results/difficulty)")
    parser.add_argument("--size", type=int, default=64, help="difficulty, masks: side of the network's input")
    parser.add_argument("--backbone", default="efficientnet_b3", help="any of timm's")
    parser.add_argument("--weights", type=Path, help="file of pretrained weights; without, from scratch")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    globals()[arguments.what](arguments)


if __name__ == "__main__":
    main()
