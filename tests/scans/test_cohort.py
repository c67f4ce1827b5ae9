"""The cohort table: layouts, manifests, their dirt, and the folds."""

import builtins
import itertools
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from e2d_lib.scans.cohort import (
    COHORT_COLUMNS,
    CohortError,
    assign_folds,
    cohort_findings,
    read_cohort,
    why_no_folds,
    with_folds,
)
from e2d_lib.scans.readers import Finding, Reason, open_scan
from tests.make_scans import JPEG, RAS, dicom, opened, series, write_nifti

_padding = itertools.count(1)


def write_scan(folder: Path, slices: int = 2, padding: int | None = None) -> Path:
    """Slices of one picture; without ``padding`` no two scans have the same bytes, or as many."""
    folder.mkdir(parents=True, exist_ok=True)
    behind = bytes(next(_padding) if padding is None else padding)
    for i in range(slices):
        (folder / f"{i}.jpg").write_bytes(JPEG + behind)
    return folder


@pytest.fixture
def released(tmp_path) -> Path:
    """A small COV19-CT-DB: names repeat between classes and splits, test has no classes."""
    root = tmp_path / "db"
    for split, label, count in (("train", "positive", 11), ("train", "negative", 2), ("valid", "positive", 1)):
        for i in range(count):
            write_scan(root / split / label / f"ct_scan_{i}")
    for name in ("x9ab3kql.dcm", "abcdefgh.1x2", "abcdefgh.png"):
        write_scan(root / "test" / name)
    return root


def brief(cohort: pd.DataFrame) -> list[tuple]:
    """(id, split, label) with None for a missing label."""
    rows = cohort[["scan_id", "split", "label"]].itertuples(index=False)
    return [(i, split, None if pd.isna(label) else int(label)) for i, split, label in rows]


class TestReleasedLayout:
    def test_rows_in_order(self, released):
        cohort = read_cohort(released)
        assert brief(cohort) == [
            *((f"train/negative/ct_scan_{i}", "train", 0) for i in range(2)),
            *((f"train/positive/ct_scan_{i}", "train", 1) for i in range(11)),
            ("valid/positive/ct_scan_0", "valid", 1),
            ("test/abcdefgh.1x2", "test", None),
            ("test/abcdefgh.png", "test", None),
            ("test/x9ab3kql.dcm", "test", None),
        ]
        assert cohort["scan_id"].is_unique and not cohort_findings(cohort)
        assert set(cohort["format"]) == {"jpeg"} and set(cohort["source"]) == {""}

    def test_columns_and_types(self, released, tmp_path):
        cohort = read_cohort(released)
        assert tuple(cohort.columns) == COHORT_COLUMNS
        assert cohort["label"].dtype == cohort["fold"].dtype == "Int64"
        assert cohort["fold"].isna().all()
        for column in ("scan_id", "path", "split", "source", "format", "patient"):
            assert pd.api.types.is_string_dtype(cohort[column])
        cohort.to_parquet(tmp_path / "cohort.parquet", index=False)
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "cohort.parquet"), cohort)

    def test_rows_open(self, released):
        for row in read_cohort(released).to_dict("records"):
            scan = open_scan(row)
            assert (scan.scan_id, scan.names) == (row["scan_id"], ("0.jpg", "1.jpg"))

    def test_a_relative_root_gives_relative_paths(self, released, monkeypatch):
        monkeypatch.chdir(released.parent)
        cohort = read_cohort("db")
        assert cohort["path"][0] == os.path.join("db", "train", "negative", "ct_scan_0")
        assert len(open_scan(cohort.loc[0])) == 2

    def test_no_slice_is_opened_and_one_a_scan_statted(self, released, monkeypatch):
        def refuse(path, *args, **kwargs):
            raise AssertionError(f"opened {path}")

        seen = []

        def stat(path, *args, real=os.stat, **kwargs):
            if str(path).endswith(".jpg"):
                assert os.path.dirname(path) not in seen
                seen.append(os.path.dirname(path))
            return real(path, *args, **kwargs)

        monkeypatch.setattr(builtins, "open", refuse)
        monkeypatch.setattr(np, "fromfile", refuse)
        monkeypatch.setattr(os, "stat", stat)
        assert len(read_cohort(released)) == 17

    @pytest.mark.parametrize(
        ("folders", "expected"),
        [
            ("validation/non-covid/a", ("validation/non-covid/a", "valid", 0)),
            ("Train/COVID/a", ("Train/COVID/a", "train", 1)),
            ("test/negative/a", ("test/negative/a", "test", 0)),
            ("train/a", ("train/a", "train", None)),
            ("train/positive/patient/first", ("train/positive/patient/first", "train", 1)),
        ],
    )
    def test_other_names(self, tmp_path, folders, expected):
        write_scan(tmp_path / folders)
        assert brief(read_cohort(tmp_path)) == [expected]

    @pytest.mark.parametrize("labels", ["CAP:0, Late covid: 1", {"cap": 0, "late-covid": 1}])
    def test_classes_of_other_names(self, tmp_path, labels):
        for name in ("train/CAP/a", "train/Late COVID/b", "valid/CAP/c"):
            write_scan(tmp_path / name)
        unknown = read_cohort(tmp_path)
        assert unknown["label"].isna().all()
        how = 'tell what it is with -p labels="CAP:0,Late COVID:0", with 1 in place of 0 for COVID-19'
        told = {(f.slice, f.outcome, f.reason) for f in cohort_findings(unknown)}
        assert told == {
            (folder, "warned", f"unknown class folder: 1 scans without label; {how}")
            for folder in ("train/CAP", "train/Late COVID", "valid/CAP")
        }
        known = read_cohort(tmp_path, labels=labels)
        assert known["label"].tolist() == [0, 1, 0] and not cohort_findings(known)

    @pytest.mark.parametrize("labels", ["CAP", "CAP:2", "CAP:", ":1", {"CAP": "yes"}])
    def test_what_is_no_mapping(self, tmp_path, labels):
        write_scan(tmp_path / "train" / "CAP" / "a")
        with pytest.raises(CohortError, match="is no NAME:1 or NAME:0"):
            read_cohort(tmp_path, labels=labels)

    def test_other_formats_in_the_layout(self, tmp_path):
        (tmp_path / "train" / "positive").mkdir(parents=True)
        write_nifti(tmp_path / "train" / "positive" / "a.nii.gz", RAS)
        series(tmp_path / "train" / "negative" / "b", [0, 1])
        cohort = read_cohort(tmp_path)
        assert brief(cohort) == [("train/negative/b", "train", 0), ("train/positive/a", "train", 1)]
        assert cohort["format"].tolist() == ["dicom", "nifti"]

    def test_sources(self, released):
        (released / "sources.csv").write_text(
            "scan_id,source\ntrain/positive/ct_scan_1,Athens\nvalid/positive/ct_scan_0,Thessaloniki\ntrain/gone,Athens\n"
        )
        cohort = read_cohort(released).set_index("scan_id")
        assert cohort["source"]["train/positive/ct_scan_1"] == "Athens"
        assert cohort["source"]["valid/positive/ct_scan_0"] == "Thessaloniki"
        assert cohort["source"]["train/negative/ct_scan_1"] == ""
        assert [(f.scan_id, f.outcome) for f in cohort_findings(cohort)] == [("train/gone", "warned")]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("scan_id,hospital\na,b\n", "no column 'source'"),
            ("scan_id,source\na,b\na,c\n", "line 3: scan 'a' has a second source 'c'"),
        ],
    )
    def test_bad_sources(self, released, text, message):
        (released / "sources.csv").write_text(text)
        with pytest.raises(CohortError, match=message):
            read_cohort(released)


class TestLayoutDirt:
    def test_empty_scan_stays_in_the_cohort(self, released):
        (released / "train" / "positive" / "ct_scan_99").mkdir()
        row = read_cohort(released).set_index("scan_id", drop=False).loc["train/positive/ct_scan_99"]
        assert open_scan(row).findings == [Finding(row["scan_id"], "", "excluded", "no slices")]

    def test_previews_inside_a_scan_are_no_scan(self, released):
        write_scan(released / "train" / "positive" / "ct_scan_0" / "previews")
        cohort = read_cohort(released)
        assert len(cohort) == 17
        assert cohort_findings(cohort) == [
            Finding("train/positive/ct_scan_0", "previews", "excluded", str(Reason.OTHER_FILE))
        ]

    def test_system_folders_and_hidden_ones(self, released):
        for name in ("__MACOSX", ".cache", "@eaDir"):
            write_scan(released / "train" / "positive" / name)
            write_scan(released / name)
        assert len(read_cohort(released)) == 17

    def test_loose_images_and_other_folders(self, released):
        write_scan(released / "train" / "positive")
        write_scan(released / "extra" / "a")
        write_nifti(released / "extra.nii", RAS)
        cohort = read_cohort(released)
        assert len(cohort) == 17
        assert cohort_findings(cohort) == [
            Finding("", "train/positive", "excluded", "loose images: 2"),
            Finding("", "extra", "excluded", str(Reason.OUTSIDE_LAYOUT)),
            Finding("", "extra.nii", "excluded", str(Reason.OUTSIDE_LAYOUT)),
        ]

    def test_link_loop(self, released):
        (released / "train" / "positive" / "loop").symlink_to(released / "train")
        (released / "train" / "positive" / "itself").symlink_to(released / "train" / "positive" / "itself")
        cohort = read_cohort(released)
        assert len(cohort) == 17
        assert cohort_findings(cohort) == [Finding("", "train/positive/loop", "excluded", str(Reason.LINK_LOOP))]

    def test_linked_scan(self, released, tmp_path):
        (released / "train" / "negative" / "linked").symlink_to(write_scan(tmp_path / "elsewhere"))
        assert "train/negative/linked" in set(read_cohort(released)["scan_id"])

    def test_unreadable_folder_is_not_lost(self, released, monkeypatch):
        def scandir(path, real=os.scandir):
            if str(path).endswith(os.path.join("positive", "ct_scan_3")):
                raise PermissionError(13, "Permission denied")
            return real(path)

        monkeypatch.setattr(os, "scandir", scandir)
        cohort = read_cohort(released)
        assert len(cohort) == 17
        (finding,) = cohort_findings(cohort)
        assert finding == Finding("train/positive/ct_scan_3", "", "excluded", "unreadable: Permission denied")
        row = cohort.set_index("scan_id", drop=False).loc["train/positive/ct_scan_3"]
        assert open_scan(row).findings == [finding]


class TestFreeTree:
    def test_folders_of_classes_without_a_split(self, tmp_path):
        for name in ("CT_COVID/a", "COVID/b", "normal/c", "1/d", "covid"):
            write_scan(tmp_path / name)
        assert brief(read_cohort(tmp_path, labels="CT_COVID:1")) == [
            ("1/d", "", None), ("COVID/b", "", 1), ("CT_COVID/a", "", 1), ("covid", "", None), ("normal/c", "", 0)
        ]  # fmt: skip

    def test_each_folder_file_and_series_is_a_scan(self, tmp_path):
        write_scan(tmp_path / "site b" / "scan10")
        write_scan(tmp_path / "site b" / "scan9")
        (tmp_path / "site a").mkdir()
        write_nifti(tmp_path / "site a" / "one.nii.gz", RAS)
        write_nifti(tmp_path / "site a" / "two.NII", RAS)
        series(tmp_path / "site c" / "patient", [0, 1, 2])
        (tmp_path / "README.txt").write_text("x")
        cohort = read_cohort(tmp_path)
        assert cohort[["scan_id", "format"]].values.tolist() == [
            ["site a/one", "nifti"],
            ["site a/two", "nifti"],
            ["site b/scan9", "jpeg"],
            ["site b/scan10", "jpeg"],
            ["site c/patient", "dicom"],
        ]
        assert cohort["label"].isna().all() and set(cohort["split"]) == {""}
        assert [len(open_scan(row)) for row in cohort.to_dict("records")] == [7, 7, 2, 2, 3]

    def test_loose_files_of_several_series(self, tmp_path):
        for i in range(12):
            dicom(tmp_path / f"p{i}.dcm", series=f"1.{i}")
        dicom(tmp_path / "p0b.dcm", series="1.0", z=1)
        dicom(tmp_path / "report.dcm", series="2.1", Modality="SR", Rows=None, Columns=None, PixelData=None)
        cohort = read_cohort(tmp_path)
        assert set(cohort["scan_id"]) == {f"{tmp_path.name}#1.0", *(f"p{i}" for i in range(1, 12))}
        assert cohort["path"][cohort["scan_id"] == "p7"].tolist() == [str(tmp_path / "p7.dcm")]
        assert sorted(len(open_scan(row)) for row in cohort.to_dict("records")) == [1] * 11 + [2]
        assert cohort_findings(cohort) == [Finding("", "report.dcm", "excluded", "other modality: SR")]

    def test_one_series_among_other_files_is_the_folder(self, tmp_path):
        series(tmp_path / "p", range(20))
        dicom(tmp_path / "p" / "a_scout.dcm", series="1.9", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
        cohort = read_cohort(tmp_path)
        assert cohort["path"].tolist() == [str(tmp_path / "p")]
        scan = open_scan(cohort.loc[0])
        assert len(scan) == 20
        assert scan.findings == [Finding("p", "a_scout.dcm", "excluded", str(Reason.LOCALIZER))]

    def test_the_root_itself_is_a_scan(self, tmp_path):
        write_scan(tmp_path / "one")
        assert read_cohort(tmp_path / "one")["scan_id"].tolist() == ["one"]
        series(tmp_path / "two", [0, 1])
        assert read_cohort(tmp_path / "two")["scan_id"].tolist() == ["two"]

    def test_a_single_file(self, tmp_path):
        path = write_nifti(tmp_path / "ct.nii.gz", RAS)
        assert read_cohort(path)[["scan_id", "path", "format"]].values.tolist() == [["ct", str(path), "nifti"]]

    def test_names_that_differ_in_suffix_only(self, tmp_path):
        write_nifti(tmp_path / "a.nii", RAS)
        write_nifti(tmp_path / "a.nii.gz", RAS)
        write_scan(tmp_path / "a")
        assert read_cohort(tmp_path)["scan_id"].tolist() == ["a", "a.nii", "a.nii.gz"]

    def test_previews_beside_volumes(self, tmp_path):
        write_scan(tmp_path)
        write_nifti(tmp_path / "a.nii", RAS)
        cohort = read_cohort(tmp_path)
        assert cohort["scan_id"].tolist() == ["a"]
        assert [f.reason for f in cohort_findings(cohort)] == ["loose images: 2"]

    @pytest.mark.shared
    def test_real_slices_each_of_its_own_series(self, shared):
        cohort = read_cohort(shared / "data")
        cohort = cohort[~cohort["scan_id"].str.startswith(("lung-pet-ct-dx/", "odd-inputs/"))]
        assert len(cohort) == 11 and (cohort["format"] == "dicom").sum() == 10
        assert all(os.path.isfile(path) for path in cohort["path"])
        assert sum(len(open_scan(row)) for row in cohort.to_dict("records")) == 10 + 112


class TestOtherVolumes:
    """MetaImage, NRRD and Analyze, as NIfTI: the same slices in every view, and no file of values is a stranger."""

    @pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr", ".hdr"])
    def test_same_slices_as_nifti(self, tmp_path, suffix):
        sitk = pytest.importorskip("SimpleITK")
        image = sitk.ReadImage(str(write_nifti(tmp_path / "v.nii.gz", RAS)))
        (tmp_path / "db").mkdir()
        for key in image.GetMetaDataKeys():
            image.EraseMetaData(key)
        sitk.WriteImage(image, str(tmp_path / "db" / f"v{suffix}"))
        cohort = read_cohort(tmp_path / "db")
        assert cohort[["scan_id", "format"]].values.tolist() == [["v", "itk"]] and not cohort_findings(cohort)
        for view in ("axial", "coronal", "sagittal"):
            scan, nifti = open_scan(cohort.loc[0], view=view), opened(tmp_path / "v.nii.gz", view=view)
            assert len(scan) == len(nifti) and not scan.findings
            for k in range(len(scan)):
                np.testing.assert_array_equal(scan.read(k), nifti.read(k))

    def test_without_the_reader_the_finding_names_the_install(self, tmp_path, monkeypatch):
        (tmp_path / "v.mha").write_bytes(b"x")
        monkeypatch.setitem(sys.modules, "SimpleITK", None)
        (finding,) = open_scan(read_cohort(tmp_path).loc[0]).findings
        assert finding.outcome == "excluded" and 'pip install "e2d-study[formats]"' in finding.reason

    def test_a_folder_named_in_latin_1_is_told(self, tmp_path):
        pytest.importorskip("SimpleITK")
        folder = os.fsencode(tmp_path) + b"/caf\xe9"
        os.mkdir(folder)
        with open(folder + b"/v.mha", "wb") as file:
            file.write(b"x")
        (finding,) = open_scan(read_cohort(tmp_path).loc[0]).findings
        assert finding.outcome == "excluded" and finding.reason.startswith("unreadable: a path that is not UTF-8")

    def test_unknown_formats_are_named(self, tmp_path):
        write_nifti(tmp_path / "a.nii", RAS)
        (tmp_path / "b.tif").write_bytes(b"x")
        assert cohort_findings(read_cohort(tmp_path)) == [Finding("", "b.tif", "excluded", "unknown format: .tif")]


class TestPatients:
    """Of a layout in which patients have several scans; and what must not be in two places."""

    @pytest.fixture
    def layout(self, tmp_path) -> Path:
        for label in ("positive", "negative"):
            for i in range(8):
                folder = tmp_path / "train" / label / f"p{i}"
                folder.mkdir(parents=True)
                for part in "ab":
                    write_nifti(folder / f"{part}.nii", RAS + 16 * i + ord(part) + 5 * (label == "positive"))
        return tmp_path

    def test_no_patient_lies_in_two_folds(self, layout):
        cohort = assign_folds(read_cohort(layout))
        assert cohort["patient"].nunique() == 16 and len(cohort) == 32
        assert (cohort.groupby("patient")["fold"].nunique() == 1).all()
        assert cohort.groupby("fold")["label"].agg(["size", "sum"]).values.tolist() == [[8, 4]] * 4

    def test_same_path_in_two_splits_names_both(self, manifest):
        with pytest.raises(CohortError, match=r"same path is in two splits: x .* and y "):
            read_cohort(manifest("scan_id,path,split,label\nx,a,train,1\ny,a,valid,1\n"))

    def test_same_series_under_two_labels_names_both(self, tmp_path):
        for place in ("train/positive/x", "train/negative/y"):
            series(tmp_path / place, [0, 1, 2])
        with pytest.raises(CohortError, match=r"under two labels: train/negative/y .* and train/positive/x "):
            read_cohort(tmp_path)

    def test_an_id_that_all_scans_share_is_nobodys(self, tmp_path):
        for name in "ab":
            series(
                tmp_path / name,
                [0, 1, 2],
                series=f"1.9{ord(name)}",
                PatientID="ANON",
                StudyInstanceUID=f"1.8{ord(name)}",
            )
        assert read_cohort(tmp_path)["patient"].tolist() == ["1.897", "1.898"]

    def test_scans_of_the_same_bytes_are_one_patients(self, tmp_path):
        for place in ("a", "b"):
            write_scan(tmp_path / place, padding=3)
        write_scan(tmp_path / "c", padding=4)
        assert read_cohort(tmp_path)["patient"].tolist() == ["a", "a", "c"]

    def test_same_bytes_under_two_labels_have_no_folds(self, tmp_path):
        for place in ("train/positive/x", "train/negative/y"):
            write_scan(tmp_path / place, padding=3)
        with pytest.raises(CohortError, match=r"train/positive/x: same file .* train/negative/y"):
            assign_folds(read_cohort(tmp_path))

    def test_parts_of_one_series_are_joined(self, tmp_path):
        series(tmp_path / "train/positive/z/A", [0, 1, 2])
        series(tmp_path / "train/positive/z/B", [3, 4, 5], names=["3.dcm", "4.dcm", "5.dcm"])
        cohort = read_cohort(tmp_path).set_index("scan_id", drop=False)
        assert len(open_scan(cohort.loc["train/positive/z"])) == 6

    @pytest.mark.shared
    def test_twin_series_of_a_real_patient(self, shared):
        cohort = read_cohort(shared / "data" / "lung-pet-ct-dx")
        assert cohort["scan_id"].tolist() == ["A0001-lung-kernel", "A0002-lung-kernel"]
        (finding,) = cohort_findings(cohort)
        assert finding.slice == "A0002-soft-kernel" and "A0002-lung-kernel was chosen" in finding.reason


class TestBadRoot:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("gone", "does not exist"),
            ("empty", "no scan in"),
            ("notes.txt", "is a file, but no"),
            ("gone.csv", "exist"),
        ],
    )
    def test_one_line(self, tmp_path, name, message):
        (tmp_path / "empty" / "train").mkdir(parents=True)
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(CohortError, match=message) as error:
            read_cohort(tmp_path / name)
        assert "\n" not in str(error.value) and name in str(error.value)


@pytest.fixture
def manifest(tmp_path):
    """Writes a manifest beside three scans, scan a, b.nii.gz and c.dcm, and gives its path."""
    write_scan(tmp_path / "study" / "a")
    write_nifti(tmp_path / "study" / "b.nii.gz", RAS)
    dicom(tmp_path / "study" / "c.dcm")
    write_scan(tmp_path / "elsewhere")

    def write(text: str, name: str = "study/manifest.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode("utf-8"))
        return path

    return write


class TestManifest:
    def test_path_alone(self, manifest):
        cohort = read_cohort(manifest("path\nc.dcm\na\nb.nii.gz\n"))
        assert cohort[["scan_id", "format"]].values.tolist() == [["c", "dicom"], ["a", "jpeg"], ["b", "nifti"]]
        assert [len(open_scan(row)) for row in cohort.to_dict("records")] == [1, 2, 7]
        assert not cohort_findings(cohort)

    def test_all_columns(self, manifest):
        text = "scan_id,path,split,label,fold,source,format\nA,a,train,1,3,Athens,jpeg\nB,b.nii.gz,,,,,\n"
        cohort = read_cohort(manifest(text))
        assert tuple(cohort.columns) == COHORT_COLUMNS
        row = cohort.loc[0].to_dict()
        expected = {"scan_id": "A", "split": "train", "label": 1, "fold": 3, "source": "Athens", "format": "jpeg"}
        assert {k: row[k] for k in row if k != "path"} == {**expected, "patient": "A"}
        assert cohort.loc[1, ["split", "source", "format"]].tolist() == ["", "", "nifti"]
        assert pd.isna(cohort["label"][1]) and pd.isna(cohort["fold"][1])

    def test_a_given_patient_in_two_splits_is_noted(self, manifest):
        cohort = read_cohort(manifest("path,split,patient\na,train,P\nb.nii.gz,valid,P\nc.dcm,train,Q\n"))
        assert cohort["patient"].tolist() == ["P", "P", "Q"]
        assert cohort_findings(cohort) == [Finding("", "P", "warned", f"{Reason.SPLIT_PATIENT}: a and b")]

    @pytest.mark.parametrize(
        ("text", "label"),
        [("1", 1), ("0", 0), ("positive", 1), ("Negative", 0), ("COVID", 1), ("non-covid", 0), (" ", None)],
    )
    def test_labels(self, manifest, text, label):
        assert brief(read_cohort(manifest(f"path,label\na,{text}\n"))) == [("a", "", label)]

    def test_whole_numbers_as_pandas_writes_them(self, manifest):
        cohort = read_cohort(manifest("path,split,label,fold\na,train,1.0,2.0\nb.nii.gz,,,\n"))
        assert brief(cohort) == [("a", "train", 1), ("b", "", None)] and cohort["fold"].tolist() == [2, pd.NA]

    def test_labels_of_other_names(self, manifest):
        path = manifest("path,label\na,CAP\nb.nii.gz,late\n")
        with pytest.raises(CohortError, match=r"line 2: label is 'CAP', .* with -p labels=\"CAP:0,late:0\", with 1 in"):
            read_cohort(path)
        assert brief(read_cohort(path, labels="CAP:0,late:1")) == [("a", "", 0), ("b", "", 1)]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "no column 'path'"),
            ("path\n", "lists no scan"),
            ("path;label\na;1\n", "no column 'path', only .*'path;label'.* comma"),
            ("file\na\n", "no column 'path'"),
            ("path,path\na,a\n", "column 'path' twice"),
            ("path,label\na,1\nb.nii.gz,maybe\n", "line 3: label is 'maybe', expected one of 1, positive, covid"),
            ("path,label\na,2\n", "line 2: label is '2'"),
            ("path,split\na,holdout\n", "line 2: split is 'holdout'"),
            ("path,format\na,mha\n", "line 2: format is 'mha', expected one of jpeg, nifti, dicom, itk"),
            ("path,fold\na,0\n", "line 2: fold is '0'"),
            ("path,fold\na,first\n", "line 2: fold is 'first'"),
            ("path,label\n,1\n", "line 2: path is empty"),
            ("path,label\na,1,2\n", "line 2: more cells than the 2 columns"),
            ("path\na\na\n", "line 3: scan_id 'a' is already that of line 2"),
            ("scan_id,path\nx,a\n\nx,b.nii.gz\n", "line 4: scan_id 'x' is already that of line 2"),
            ("path\ngone\n../gone\n", "none of its 2 paths exists"),
        ],
    )
    def test_refused(self, manifest, text, message):
        with pytest.raises(CohortError, match=message) as error:
            read_cohort(manifest(text))
        assert "\n" not in str(error.value)

    def test_not_utf8(self, manifest):
        path = manifest("path\n")
        path.write_bytes("path\nécho\n".encode("latin-1"))
        with pytest.raises(CohortError, match="not UTF-8"):
            read_cohort(path)

    def test_spreadsheet_habits(self, manifest):
        """A byte order mark, Windows line ends, spaces, quotes and blank lines."""
        cohort = read_cohort(manifest('\ufeffpath , label\r\n"a", 1\r\n\r\nb.nii.gz ,0\r\n,\r\n'))
        assert brief(cohort) == [("a", "", 1), ("b", "", 0)]

    def test_unknown_column_is_left_out_with_a_warning(self, manifest):
        cohort = read_cohort(manifest("path,age\na,61\n"))
        assert tuple(cohort.columns) == COHORT_COLUMNS
        assert cohort_findings(cohort) == [Finding("", "age", "warned", str(Reason.UNKNOWN_COLUMN))]

    def test_missing_path_is_excluded_when_opened(self, manifest):
        cohort = read_cohort(manifest("path\na\ngone\n"))
        assert cohort["scan_id"].tolist() == ["a", "gone"]
        scan = open_scan(cohort.loc[1])
        assert len(scan) == 0 and scan.findings == [Finding("gone", "", "excluded", "missing path")]

    @pytest.mark.parametrize("path", ["../elsewhere", "a/../../elsewhere", "link"])
    def test_leaving_the_folder_is_warned(self, manifest, tmp_path, path):
        (tmp_path / "study" / "link").symlink_to(tmp_path / "elsewhere")
        cohort = read_cohort(manifest(f"scan_id,path\nx,{path}\ny,a\nz,a/../a\n"))
        same_as_x = [Finding("z", "", "warned", f"{Reason.SAME_BYTES}: as y")]
        assert cohort_findings(cohort) == [Finding("x", "", "warned", f"{Reason.OUTSIDE}: {path}"), *same_as_x]
        assert len(open_scan(cohort.loc[0])) == 2

    def test_absolute_paths_are_meant(self, manifest, tmp_path):
        cohort = read_cohort(manifest(f"scan_id,path\nx,{tmp_path / 'elsewhere'}\n"))
        assert cohort["path"].tolist() == [str(tmp_path / "elsewhere")] and not cohort_findings(cohort)

    def test_a_relative_manifest_gives_relative_paths(self, manifest, monkeypatch):
        path = manifest("path\na\n")
        monkeypatch.chdir(path.parent)
        assert read_cohort("manifest.csv")["path"].tolist() == ["a"]
        monkeypatch.chdir(path.parent.parent)
        assert read_cohort("study/manifest.csv")["path"].tolist() == [os.path.join("study", "a")]

    def test_one_series_of_a_folder(self, manifest, tmp_path):
        for i in range(4):
            dicom(tmp_path / "study" / "mixed" / f"{i}.dcm", series=f"1.{i % 2}", z=i)
        cohort = read_cohort(manifest("scan_id,path\nx,mixed#1.1\n"))
        assert cohort["format"].tolist() == ["dicom"]
        assert open_scan(cohort.loc[0]).names == ("1.dcm", "3.dcm")


def published(seed: int = 0) -> pd.DataFrame:
    """As many scans as COV19-CT-DB has, in a shuffled table."""
    rows = [("train", label, i) for label, n in (("positive", 703), ("negative", 655)) for i in range(n)]
    rows += [("valid", label, i) for label, n in (("positive", 170), ("negative", 156)) for i in range(n)]
    rows += [("test", "", i) for i in range(30)]
    table = pd.DataFrame(
        {
            "scan_id": [f"{split}/{label}/ct_scan_{i}" for split, label, i in rows],
            "split": [split for split, _, _ in rows],
            "label": pd.array(
                [{"positive": 1, "negative": 0, "": pd.NA}[label] for _, label, _ in rows], dtype="Int64"
            ),
            "fold": pd.array([pd.NA] * len(rows), dtype="Int64"),
        }
    )
    return table.sample(frac=1, random_state=seed, ignore_index=True)


class TestFolds:
    def test_published_sizes(self):
        """340/340/339/339 scans with 176/176/175/176 COVID, the validation split as fold 5."""
        folds = assign_folds(published())
        train = folds[folds["split"] == "train"].groupby("fold")["label"]
        assert train.size().tolist() == [340, 340, 339, 339]
        assert train.sum().tolist() == [176, 176, 175, 176]
        assert set(folds.loc[folds["split"] == "valid", "fold"]) == {5}
        assert folds.loc[folds["split"] == "test", "fold"].isna().all()
        assert folds["fold"].dtype == "Int64"

    def test_the_tables_order_does_not_matter(self):
        by_id = [assign_folds(published(seed)).set_index("scan_id")["fold"].sort_index() for seed in (1, 2)]
        pd.testing.assert_series_equal(*by_id)

    def test_leaves_its_input_alone(self):
        cohort = published()
        assign_folds(cohort)
        assert cohort["fold"].isna().all()

    def test_seed_and_number(self):
        cohort = published()
        folds = assign_folds(cohort, n_folds=3, seed=1)
        assert set(folds.loc[folds["split"] == "train", "fold"]) == {1, 2, 3}
        assert set(folds.loc[folds["split"] == "valid", "fold"]) == {4}
        assert not folds["fold"].equals(assign_folds(cohort, n_folds=3, seed=2)["fold"])

    def test_too_few_of_a_class(self):
        cohort = published()
        positive = (cohort["split"] == "train") & (cohort["label"] == 1)
        cohort = cohort.drop(cohort.index[positive][3:])
        with pytest.raises(
            CohortError, match="4 stratified folds need 4 train scans of each class, got 3 positive, 655"
        ):
            assign_folds(cohort)
        assert set(assign_folds(cohort, n_folds=3)["fold"].dropna()) == {1, 2, 3, 4}

    def test_too_few_is_a_finding_where_chapters_go_on(self):
        cohort = published()
        positive = (cohort["split"] == "train") & (cohort["label"] == 1)
        few = with_folds(cohort.drop(cohort.index[positive][3:]))
        why = "no folds: 4 stratified folds need 4 train scans of each class, got 3 positive, 655 negative"
        assert few["fold"].isna().all() and why_no_folds(few) == why
        assert cohort_findings(few) == [Finding("", "", "warned", why)]
        enough = with_folds(cohort)
        pd.testing.assert_frame_equal(enough, assign_folds(cohort))
        assert not why_no_folds(enough) and not cohort_findings(enough)

    def test_unlabeled(self, tmp_path):
        write_scan(tmp_path / "a")
        assert assign_folds(read_cohort(tmp_path))["fold"].isna().all()

    def test_given_folds_are_kept(self):
        cohort = published()
        train = cohort["split"] == "train"
        cohort.loc[train, "fold"] = np.arange(train.sum()) % 2 + 1
        folds = assign_folds(cohort)
        pd.testing.assert_series_equal(folds.loc[train, "fold"], cohort.loc[train, "fold"])
        assert set(folds.loc[folds["split"] == "valid", "fold"]) == {5}
        cohort.loc[cohort.index[train][:7], "fold"] = pd.NA
        with pytest.raises(CohortError, match="7 of 1358 labelled train scans have no fold"):
            assign_folds(cohort)


def test_scans_opened_by_path_alone(tmp_path):
    """A mapping with a path is enough; the format is guessed."""
    assert [len(opened(p)) for p in (write_scan(tmp_path / "a"), write_nifti(tmp_path / "b.nii", RAS))] == [2, 7]
