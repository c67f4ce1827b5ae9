"""The shipped index against numbers counted once by hand, and downloads from a real S3 server on this machine."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from e2d_lib.scans import open_cohorts
from e2d_lib.scans.cohort import read_cohort
from e2d_lib.scans.open_cohorts import FetchError
from e2d_lib.scans.readers import open_scan
from e2d_lib.study.cli import main
from tests.conftest import ROOT

COUNTED_WITH = "25.0.5"  # idc-index-data, beside idc-index 0.13.4


@pytest.fixture(scope="module")
def shipped() -> pd.DataFrame:
    if (version := pytest.importorskip("idc_index_data").__version__) != COUNTED_WITH:
        pytest.skip(f"the numbers were counted with idc-index-data {COUNTED_WITH}, this is {version}")
    return open_cohorts.read_index()


class TestIndex:
    def test_what_there_is(self, shipped):
        ct = shipped[shipped["Modality"] == "CT"].groupby("collection_id")
        found = pd.DataFrame({"patients": ct["PatientID"].nunique(), "series": ct.size(), "gb": ct["mb"].sum() / 1000})
        assert found.loc["midrc_ricord_1a"].round(1).tolist() == [110, 229, 11.7]
        assert found.loc["midrc_ricord_1b"].round(1).tolist() == [117, 120, 8.7]
        patients = {"covid_19_ny_sbu": 458, "covid_19_ar": 23, "lidc_idri": 1010, "lung_pet_ct_dx": 355}
        patients["nsclc_radiomics"] = 422
        assert found["patients"][list(patients)].to_dict() == patients

    def test_the_first_rule(self, shipped):
        """By description and number of images, sharp reconstructions among them."""
        chosen = open_cohorts.choose("ricord", sharp=True).series.groupby("collection_id")
        assert chosen.size().tolist() == [110, 109]
        assert chosen["images"].median().tolist() == [118.5, 159]
        assert (chosen["mb"].sum() / 1000).round(1).tolist() == [8.3, 8.0]

    def test_no_class_is_sharper_where_it_need_not_be(self, shipped):
        chosen = open_cohorts.choose("ricord").series
        sharp = chosen[chosen["description"].str.contains("bone|detail", case=False)]
        ids = shipped.set_index("PatientID")["description"].str.lower()
        assert len(chosen) == 219 and len(sharp) < 5
        for patient in sharp["PatientID"]:  # what else they have is ruled out by name
            others = ids[[patient]][~ids[[patient]].str.contains("bone|detail")]
            assert others.str.contains("scout|cor|sag|prep|iodine|mip").all()

    def test_overview_and_masks(self, shipped):
        table = open_cohorts.overview().set_index("cohort")
        assert table.loc["ricord", ["patients", "series", "licence"]].tolist() == [227, 349, "CC BY-NC 4.0"]
        assert table.loc["lung-pet-ct-dx", ["masks", "licence"]].tolist() == [106, "CC BY 4.0"]
        assert table.loc["nsclc-radiomics", ["masks", "licence"]].tolist() == [421, "CC BY-NC 3.0"]
        assert table["wrong"].str.len().gt(20).all()

    def test_masks_are_credited_by_their_own_makers_and_licence(self, shipped):
        text = open_cohorts.citation(open_cohorts.choose("lung-pet-ct-dx").series)
        assert "lung_pet_ct_dx: https://doi.org/10.7937/tcia.2020.nnc2-0461, CC BY 4.0\n" in text
        assert "lung_pet_ct_dx, lung masks: https://doi.org/10.5281/zenodo.8345959, CC BY 4.0\n" in text
        text = open_cohorts.citation(open_cohorts.choose("nsclc-radiomics").series)
        assert text.count("10.7937/k9/tcia.2015.pf0m9rei, CC BY-NC 3.0") == 2
        assert "lung masks" not in open_cohorts.citation(open_cohorts.choose("ricord").series)

    @pytest.mark.parametrize("name", open_cohorts.COHORTS)
    def test_one_series_a_patient_and_a_reason_for_each_other(self, shipped, name):
        chosen = open_cohorts.choose(name)
        assert chosen.series["PatientID"].is_unique and chosen.series["scan_id"].is_unique
        taken, left = set(chosen.series["SeriesInstanceUID"]), set(chosen.rejected["series"])
        ours = shipped["collection_id"].isin(open_cohorts.COHORTS[name].collections) & (shipped["Modality"] == "CT")
        assert not taken & left and taken | left == set(shipped.loc[ours, "SeriesInstanceUID"])
        assert chosen.rejected["reason"].ne("").all()
        summary = chosen.summary()
        assert summary.loc["patients chosen"].sum() == len(chosen.series)
        assert summary.filter(like="rejected", axis="index").to_numpy().sum() == len(chosen.rejected)

    def test_few_patients_are_of_both_classes_and_drawn_by_the_seed(self, shipped):
        few = open_cohorts.choose("ricord", patients=20, seed=3).series
        assert few["label"].value_counts().to_dict() == {0: 10, 1: 10}
        assert few.equals(open_cohorts.choose("ricord", patients=20, seed=3).series)
        assert set(few["PatientID"]) != set(open_cohorts.choose("ricord", patients=20, seed=4).series["PatientID"])

    def test_dry_run_writes_nothing(self, shipped, tmp_path):
        said = []
        open_cohorts.fetch("ricord", tmp_path / "r", patients=20, dry_run=True, say=said.append)
        assert not list(tmp_path.iterdir()) and "20 patients" in said[0] and "CC BY-NC 4.0" in said[0]
        with pytest.raises(FetchError, match=r"CC BY-NC 4.0.*--accept-licence"):
            open_cohorts.fetch("ricord", tmp_path / "r", say=said.append)
        with pytest.raises(FetchError, match="patients is -1"):
            open_cohorts.fetch("ricord", tmp_path / "r", patients=-1, say=said.append)
        assert not list(tmp_path.iterdir())

    def test_commands_that_fetch_nothing(self, shipped, tmp_path, capsys):
        assert main(["fetch", "--list"]) == 0
        shown = capsys.readouterr().out
        assert shown.index("ricord  ") < shown.index("227 patients") < shown.index("20.3 GB  CC BY-NC 4.0; no COVID-19")
        assert all(cohort.wrong in shown for cohort in open_cohorts.COHORTS.values())
        assert main(["fetch", "ricord", str(tmp_path / "r"), "--dry-run"]) == 0
        lines = [line.rsplit(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
        table = {name.strip(): values for name, *values in lines}  # counted by hand in the index
        assert table["patients chosen"] == ["109", "110"] and table["median slices"] == ["159", "118.5"]
        assert table["least slices"] == ["76", "80"] and table["most slices"] == ["292", "472"]
        assert table["rejected: coronal or sagittal"] == ["0", "55"] and table["rejected: scout"] == ["0", "15"]
        for wrong, said in {
            ("ricord",): "fetch ricord DIR",
            ("covid", str(tmp_path)): "no cohort 'covid'; there are ricord",
            ("ricord", str(tmp_path / "r")): "--accept-licence; nothing fetched",
        }.items():
            assert main(["fetch", *wrong]) == 2
            error = capsys.readouterr().err
            assert said in error and error.count("\n") == 1
        assert not list(tmp_path.iterdir())


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FetchError, match=r"pip install 'e2d-study\[open\]'"):
        open_cohorts.read_index()


@pytest.mark.parametrize("name", ["../../etc/passwd", "/abs", "..", "", "a\nb", "a;rm -rf b", ".hidden", "x" * 300])
def test_a_name_from_outside_is_one_part_of_a_path(name, tmp_path):
    path = tmp_path / open_cohorts.safe(name)
    path.write_text("")  # the file system takes it
    assert path.resolve().parent == tmp_path and not path.name.startswith(".")


def test_split_is_stratified():
    labels = pd.Series([0] * 10 + [1] * 5 + [2])
    parts = pd.Series(open_cohorts.split(labels, seed=0))
    assert parts.groupby(labels).apply(lambda p: (p == "valid").sum()).tolist() == [2, 1, 0]
    assert open_cohorts.split(labels, seed=0) != open_cohorts.split(labels, seed=1)


# ------------------------------------------------------------------------------------------------------- a real server


SERIES = {"A0001-lung-kernel": 1, "A0002-lung-kernel": 0, "A0002-soft-kernel": 0}


class Server:
    """A bucket of an S3 server, real series in it as public objects, and an index that knows them as RICORD's."""

    def __init__(self, client, url: str, folder: Path, data: Path):
        self.client, self.url, self.index, self.bucket = (
            client,
            url,
            folder / "index.parquet",
            folder.name.replace("_", "-"),
        )
        client.create_bucket(Bucket=self.bucket, ACL="public-read")
        self.files = {name: sorted((data / name).glob("*.dcm"))[:30] for name in SERIES}
        rows = []
        for number, (name, paths) in enumerate(self.files.items()):
            for path in paths:
                self.put(f"uuid-{number}/{path.name}", path.read_bytes())
            rows.append(
                {"collection_id": "midrc_ricord_1a" if SERIES[name] else "midrc_ricord_1b", "PatientID": f"../P {name}"}
                | {"StudyInstanceUID": name, "SeriesInstanceUID": f"1.2.{number}", "Modality": "CT"}
                | {"sop_class_name": "CT Image Storage", "SeriesDescription": None, "instanceCount": len(paths)}
                | {"series_size_MB": sum(p.stat().st_size for p in paths) / 1e6, "license_short_name": "CC BY 4.0"}
                | {"source_DOI": "10.7937/x", "series_aws_url": f"s3://{self.bucket}/uuid-{number}/*"}
            )
        pd.DataFrame(rows).to_parquet(self.index)

    def put(self, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body, ACL="public-read")

    def fetch(self, folder, say=print, **options):
        how = {"accept_licence": True, "endpoint_url": self.url, "index": self.index, "n_jobs": 1, "say": say}
        return open_cohorts.fetch("ricord", folder, **(how | options))


@pytest.fixture(scope="module")
def s3():
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    url = "http://{}:{}".format(*running.get_host_and_port())
    key = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=url, **key)
    yield client, url
    client.close()
    running.stop()


@pytest.fixture
def server(shared, s3, tmp_path_factory):
    return Server(*s3, tmp_path_factory.mktemp("bucket"), shared / "data" / "lung-pet-ct-dx")


def fetched(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


class TestDownload:
    def test_by_the_command(self, server, tmp_path, capsys):
        command = ["fetch", "ricord", str(tmp_path / "out"), "--patients", "2", "--accept-licence", "--jobs", "1"]
        command += ["--endpoint-url", server.url, "--index", str(server.index)]
        assert main(command) == 0
        assert "0 of 60 files are there" in capsys.readouterr().out
        cohort = read_cohort(tmp_path / "out" / "manifest.csv")
        assert sorted(cohort["label"]) == [0, 1] and (cohort["format"] == "dicom").all()
        assert [len(open_scan(row)) for _, row in cohort.iterrows()] == [30, 30]
        assert main(command) == 0 and "60 of 60 files are there" in capsys.readouterr().out
        command[command.index(server.url)] = "http://127.0.0.1:9"
        assert main(command) == 2 and "server's list cannot be read" in capsys.readouterr().err

    def test_whole_then_again_then_a_cut_file(self, server, tmp_path):
        said, out = [], tmp_path / "out"
        manifest = server.fetch(out, said.append)
        assert manifest["scan_id"].tolist() == [f"P_{name}" for name in SERIES]
        assert manifest["label"].tolist() == [1, 0, 0] and sorted(manifest["split"]) == ["train", "train", "valid"]
        for name, paths in server.files.items():
            here = sorted((out / "scans" / f"P_{name}").iterdir())
            assert [p.read_bytes() for p in here] == [p.read_bytes() for p in paths]
        assert {p.split("/")[0] for p in fetched(out)} == {"scans", "manifest.csv", "rejected.csv", "CITATION.txt"}
        assert "10.7937/x, CC BY 4.0" in (out / "CITATION.txt").read_text()
        assert "0 of 90 files are there" in said[2] and "3 scans, 0 rejected" in said[-1]
        # again: nothing to come; a file cut short and one with a flipped byte are fetched again
        before = {p: p.stat().st_mtime_ns for p in out.rglob("*.dcm")}
        first, second, *_ = sorted(before)
        first.write_bytes(first.read_bytes()[:-10])
        server.fetch(out, said.append)
        assert "89 of 90 files are there" in said[-2]
        assert [p for p in before if p.stat().st_mtime_ns != before[p]] == [first]
        second.write_bytes(b"\0" + second.read_bytes()[1:-1] + b"\7")
        with pytest.raises(FetchError, match=r"1 of 90 files not fetched, 002.dcm: differs.*MD5.*the same command"):
            server.fetch(out, said.append)
        server.fetch(out, said.append)
        assert second.read_bytes() == server.files["A0001-lung-kernel"][1].read_bytes()
        print("\n".join(said))

    def test_truncated_and_missing_objects_and_no_patient(self, server, tmp_path):
        cut = server.files["A0002-lung-kernel"][3].read_bytes()
        server.put("uuid-1/004.dcm", cut[: len(cut) // 2])
        server.client.delete_object(Bucket=server.bucket, Key="uuid-2/005.dcm")
        server.put("uuid-0/evil;$(x).dcm", b"no")  # a name that is not taken
        manifest = server.fetch(tmp_path / "out")
        assert manifest["scan_id"].tolist() == ["P_A0001-lung-kernel"]
        rejected = pd.read_csv(tmp_path / "out" / "rejected.csv")
        assert rejected["patient"].tolist() == ["../P A0002-lung-kernel", "../P A0002-soft-kernel"]
        assert "MB on the server" in rejected["reason"][0] and "truncated" in rejected["reason"][0]
        assert rejected["reason"][1] == "29 of 30 images on the server"
        assert not [p for p in fetched(tmp_path) if "evil" in p]

    def test_the_reader_has_the_last_word(self, server, tmp_path):
        """The index cannot know that a middle slice's pixels are damaged, if its size is right."""
        paths = server.files["A0002-lung-kernel"]
        for path in paths:
            body = path.read_bytes()
            server.put(f"uuid-1/{path.name}", body[:4000] + bytes(len(body) - 4000))
        manifest = server.fetch(tmp_path / "out")
        assert "P_A0002-lung-kernel" not in set(manifest["scan_id"])
        assert pd.read_csv(tmp_path / "out" / "rejected.csv")["reason"].str.contains("middle slice|slices that").all()

    def test_no_server_and_no_room(self, server, tmp_path, monkeypatch):
        with pytest.raises(FetchError, match="server's list cannot be read"):
            server.fetch(tmp_path / "out", endpoint_url="http://127.0.0.1:9")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
        with pytest.raises(FetchError, match=r"0\.02 GB are still to come, and .* has room for 0\.00"):
            server.fetch(tmp_path / "out")

    def test_a_disk_that_fills_up(self, server, tmp_path):
        """On a file system of 2 MB, mounted in a name space of its own; what was fetched stays."""
        script = (
            "import shutil, sys; from e2d_lib.scans import open_cohorts as o\n"
            "shutil.disk_usage = lambda path: shutil._ntuple_diskusage(0, 0, 10**12)\n"
            f"try: o.fetch('ricord', 'small/out', accept_licence=True, endpoint_url={server.url!r}, "
            f"index={str(server.index)!r})\n"
            "except o.FetchError as e: print('E', e)\n"
            "from pathlib import Path; print('kept', len(list(Path('small/out').rglob('*.dcm'))))\n"
            "print('other', [str(p) for p in Path('small/out').iterdir()])"
        )
        (tmp_path / "small").mkdir()
        mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=2m none small && exec "$0" -c "$1"']
        if not shutil.which("unshare") or subprocess.run([*mount, sys.executable, ""], cwd=tmp_path).returncode:
            pytest.skip("no file system can be mounted here")
        run = subprocess.run(
            [*mount, sys.executable, script], cwd=tmp_path, capture_output=True, text=True, env=_environment()
        )
        error = next(line for line in run.stdout.splitlines() if line.startswith("E "))
        assert "files not fetched" in error and "no space left on device" in error and "same command goes on" in error
        kept = int(run.stdout.split("kept ")[1].split()[0])
        assert 0 < kept < 90 and "other ['small/out/scans']" in run.stdout

    def test_stopped_with_control_c_then_the_same_again(self, server, tmp_path):
        out = tmp_path / "out"
        script = (
            "from e2d_lib.scans import open_cohorts as o\n"
            f"o.fetch('ricord', {str(out)!r}, accept_licence=True, endpoint_url={server.url!r}, "
            f"index={str(server.index)!r})"
        )
        run = subprocess.Popen(
            [sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, env=_environment(),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
        )  # fmt: skip
        while run.poll() is None and not list(out.rglob("*.dcm")):
            time.sleep(0.001)
        run.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in run.communicate()[1]
        had = len(list(out.rglob("*.dcm")))
        assert 0 < had < 90 and not (out / "manifest.csv").exists()
        said = []
        assert len(server.fetch(out, said.append)) == 3
        assert f"{had} of 90 files are there" in said[-2]
        assert not (out / ".download").exists()
        print("\n".join(said))


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "E2D_PROGRESS": "off"}
