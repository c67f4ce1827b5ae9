"""The model card: its sections, the hub's front matter, the numbers of the tables."""

from dataclasses import asdict

import pandas as pd
import pytest
import yaml
from huggingface_hub import ModelCard

from e2d_lib.evaluation import scoring
from e2d_lib.method import preprocess
from e2d_lib.network.model import ModelConfig
from e2d_lib.network.training import Recipe
from e2d_lib.study import modelcard
from tests.evaluation.test_scoring import cohort_of, made

SMALL = ModelConfig("test_efficientnet", pretrained=False)


class TestModelCard:
    def card(self, rng, *, data="phantom", inner=True, compared=True, change=None):
        predictions = pd.concat([made(rng, inner=inner), made(rng, inner=inner, fraction=0.1)])
        cohort = cohort_of(predictions, "hospital_1")
        cohort.loc[cohort["scan_id"].eq("valid 000"), "source"] = "hospital_2"
        scores = scoring.scan_scores(predictions, cohort)
        main = scoring.largest(scores)
        columns = {"fold": 5, "fraction": 1.0, "seed": 0, "train": 12, "inner": 12, "valid": 40, "epoch": 3}
        columns["epoch_by"] = "loss of 12 scans held out"
        table = scoring.at_thresholds(main, n_boot=20)
        text = modelcard.card(
            name="a network",
            data=data,
            config=asdict(SMALL),
            recipe=asdict(Recipe.preset(**(change or {}))),
            parameters=12345,
            preprocessing=asdict(preprocess.Params()),
            scored=scoring.mean_over_seeds(main),
            runs=pd.DataFrame([columns]),
            aggregation="mean",
            metrics=table,
            by_source=scoring.by_group(main, "source", n_boot=20),
            thresholds=scoring.thresholds(predictions),
            comparison=scoring.paired(scores[scores["fraction"] == 0.1], main, n_boot=20).assign(name="all less few")
            if compared
            else pd.DataFrame(),
        )
        return text, table

    def test_every_section_is_there(self, rng):
        text, _ = self.card(rng)
        for section in (
            "Model details", "Intended use", "Training data", "Evaluation data", "Metrics", "Ethical considerations",
            "Caveats",
        ):  # fmt: skip
            assert f"\n## {section}\n" in text
        assert "### Out of scope\n\n**Not a medical device.**" in text
        assert "### By source" in text and "### Threshold" in text and "None" not in text and "nan" not in text

    @pytest.mark.parametrize(("data", "warned"), [("phantom", True), ("ricord", False)])
    def test_a_card_beside_one_checkpoint_says_what_it_was_trained_on(self, data, warned):
        run = {
            "fold": 5,
            "fraction": 0.1,
            "seed": 3,
            "train": 12,
            "inner": 0,
            "valid": 40,
            "epoch": 3,
            "epoch_by": "last epoch",
        }
        text = modelcard.card(
            runs=pd.DataFrame([run]),
            aggregation="mean",
            data=data,
            config=asdict(SMALL),
            recipe=asdict(Recipe.preset()),
            parameters=12345,
            preprocessing=asdict(preprocess.Params()),
        )
        assert f"trained on {data}\n" in text and "**Not a medical device.**" in text and "1 checkpoint" in text
        assert ("They say nothing about its worth on patients' CT" in text) == warned
        assert "| 5 | 10 % | 3 | 12 | 0 | 40 | 3 | last epoch |" in text and "None" not in text

    def test_the_front_matter_is_the_hubs(self, rng):
        text, table = self.card(rng)
        front = yaml.safe_load(text.split("---\n")[1])
        assert front["library_name"] == "timm" and "not-for-clinical-use" in front["tags"]
        read = ModelCard(text)
        values = {result.metric_type: result.metric_value for result in read.data.eval_results}
        given = table[table["at"] == "0.5"].set_index("metric")["value"]
        assert values["roc_auc"] == pytest.approx(given["roc_auc"], abs=1e-4)
        assert values["f1"] == pytest.approx(given["macro_f1"], abs=1e-4)

    def test_numbers_are_the_tables(self, rng):
        text, table = self.card(rng)
        for row in table.to_dict("records"):
            interval = f"{row['low']:.3f} to {row['high']:.3f}"
            if row["metric"] == "ece":
                interval = "no interval: resampling adds to its bias"
            assert f"{row['value']:.3f} ({interval})" in text
        assert "12,345 parameters" in text and "Fold 5 of" in text and "40 scans (20 positive)" in text
        assert "| hospital_2 | 1 | undefined: no positive scans |" in text
        assert "Paired on the same scans: all less few." in text

    def test_a_phantom_is_called_one_and_other_data_are_not(self, rng):
        assert "**All numbers here are phantom numbers.**" in self.card(rng)[0]
        other, _ = self.card(rng, data="our hospital")
        assert "phantom" not in other.lower() and "Our hospital. Each run trains" in other

    def test_without_a_chosen_threshold_or_a_second_run(self, rng):
        text, _ = self.card(rng, inner=False, compared=False)
        assert "Only the given threshold is reported" in text and "no scans held out of the training folds" in text
        assert "Compared with" not in text and "as few as" not in text

    def test_an_epoch_chosen_on_the_reported_fold_is_told(self, rng):
        assert "none chose the epoch" in self.card(rng)[0]
        assert "they **chose the epoch**" in self.card(rng, change={"select": "reported_fold"})[0]
