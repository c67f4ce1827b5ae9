"""What `e2d plan` says, against sums made here."""

import pytest

from e2d_lib.network import memory
from e2d_lib.network.model import ModelConfig
from e2d_lib.study import cli, estimate
from tests.conftest import ROOT

GIB = 2**30


def test_cards_keep_slices_where_they_fit_and_the_step_gets_the_rest(monkeypatch):
    monkeypatch.setattr(memory, "held", lambda config, images, size, dtype: (images * GIB // 4, 0))
    table = estimate.cards(ModelConfig("test_efficientnet"), 160, 1024, 24 * 1024).set_index("card")  # 24 GiB of slices
    assert table["slices"].to_dict() == {
        "16 GB": "on disk", "24 GB": "on disk", "40 GB": "on disk", "80 GB": "on it",
    }  # fmt: skip
    for card, row in table.iterrows():
        room = 0.75 * (0.97 * int(card[:2]) - 24 * (row["slices"] == "on it"))
        assert row["at once"] / 4 <= room
        parts = -(-160 // row["at once"])
        assert parts == 1 or -(-160 // (parts - 1)) / 4 > room  # one part fewer would not fit
        assert (row["set"] == "nothing") == (parts == 1)


def test_the_command_adds_up_images_slices_and_hours(tmp_path, capsys):
    for k in range(10):
        (tmp_path / "train" / "covid" / f"scan {k}").mkdir(parents=True)
        for number in range(6):
            (tmp_path / "train" / "covid" / f"scan {k}" / f"{number}.jpg").touch()
    changes = ["size=64", "folds=[5]", "fractions=[0.5, 1.0]", "seeds=[0, 1]", "epochs=10", "n_samples=8"]
    changes += ["backbone=test_efficientnet", "scans_per_step=4", "settings={}"]
    arguments = [part for change in changes for part in ("-p", change)]
    options = ["--profile", "ci", "--rate", "2", "--notebooks", str(ROOT / "notebooks"), "--data-root", str(tmp_path)]
    assert cli.main(["plan", *options, *arguments]) == 0
    text = capsys.readouterr().out
    assert "test_efficientnet at 64×64, 32 slices a step, 4 runs of 10 epochs" in text
    assert "10 scans, 60 slices (files in the scans' folders), about 30 in their windows" in text
    images = round(0.8 * 10 * (0.5 + 1.0) * 2 * 8 * 10 * 0.85)
    assert f"{images / 2 / 3600:.1f} at 2.0 images/s (given), {images:,} images" in text


def test_a_rate_is_measured_where_none_is_given():
    recipe = estimate.Recipe.preset(device="cpu")
    assert estimate.rate(ModelConfig("test_efficientnet", pretrained=False), 32, recipe) > 0


def test_slices_that_cannot_be_counted_are_the_papers_number_a_scan(tmp_path):
    assert pytest.approx(481_075 / 1684, abs=0.5) == estimate.SLICES
    assert estimate.slice_count({"data_root": "", "n_scans": 10, "slices_min": 20, "slices_max": 40})[:2] == (10, 300)
