"""The energy of a run, by codecarbon, in run.json and on the card."""

import json

import pytest
from huggingface_hub import ModelCard


@pytest.mark.slow
def test_energy_adds_up_over_the_times_that_a_run_was_started(train):
    def noted():
        return json.loads((folder / "run.json").read_text())["energy"]

    folder = train(track_emissions="DEU", max_train_steps=2)
    first = noted()
    assert 0 < first["kilowatt_hours"] < 0.1  # seconds of a machine that takes less than 10 kW
    assert 200 < first["co2_grams"] / first["kilowatt_hours"] < 600  # Germany's electricity, in g of CO2 per kWh
    train(track_emissions="DEU", max_train_steps=4)
    assert noted()["kilowatt_hours"] > first["kilowatt_hours"]

    about = ModelCard.load(folder / "README.md").data.co2_eq_emissions
    assert about["emissions"] == noted()["co2_grams"]
    assert (about["training_type"], about["geographical_location"]) == ("pre-training", "DEU")
    assert "The whole machine took about" in (folder / "README.md").read_text()


@pytest.mark.parametrize("country", ["DE", "XXX", "Germany"])
def test_a_country_that_is_none(train, country):
    with pytest.raises(SystemExit, match=f"--track_emissions {country}: expected a country in three letters"):
        train(track_emissions=country)
