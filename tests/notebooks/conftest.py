"""The study run once a session at ci size, through the runner; the tests read what it recorded."""

import pandas as pd
import pytest

from e2d_lib import io
from e2d_lib.method import preprocess
from e2d_lib.study import cli, runner
from tests.conftest import ROOT


class Results:
    """Reads the artefacts of a run."""

    def __init__(self, folder):
        self.dir = folder

    def headline(self, chapter: str) -> dict:
        return io.read_json(self.dir / chapter / "headline.json")["headline"]

    def table(self, chapter: str, name: str) -> pd.DataFrame:
        return pd.read_csv(self.dir / chapter / "tables" / f"{name}.csv", keep_default_na=False, na_values=["nan"])

    def scans(self) -> pd.DataFrame:
        made = io.read_json(self.dir / "02_ssflpp_preprocessing" / "preprocessed.json")
        return preprocess.load(made["cache"], preprocess.Params(**made["params"])).scans


@pytest.fixture(scope="session")
def ci_run(tmp_path_factory) -> Results:
    folder = tmp_path_factory.mktemp("study") / "ci"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert cli.main(["run", "--profile", "ci", "--out", str(folder), "--quiet"]) == 0
    return Results(folder)


@pytest.fixture(scope="session")
def chapters() -> list[str]:
    return [notebook.name for notebook in runner.notebooks(ROOT / "notebooks")]
