"""The energy that a run takes and the CO2 of its electricity, as codecarbon estimates both for the whole machine."""

import importlib.util
import logging
from typing import Any

from ddpm_hf.config import TrainingConfig
from ddpm_hf.forms import misfit


def check_emissions(config: TrainingConfig):
    """Raise a ValueError if energy is to be measured and cannot be."""
    country = config.track_emissions
    if country is None:
        return
    if importlib.util.find_spec("codecarbon") is None:
        raise ValueError(f"--track_emissions {country} needs a package: pip install codecarbon.")
    from codecarbon.input import DataSource

    if country not in DataSource().get_global_energy_mix_data():
        raise ValueError(
            f"--track_emissions {country}: expected a country in three letters (ISO 3166) whose electricity codecarbon "
            "knows, such as DEU."
        )


class EnergyMeter:
    """The energy of a run, over all the times that its command was started.

    Args:
        country (`str`): Three letters; the CO2 is that of this country's electricity. Nobody else is asked.
        noted: What [`read`] returned before, when the run stopped; of another country it does not count.
        step (`int`): The step that the run goes on from.
    """

    def __init__(self, country: str, noted: Any, step: int):
        import codecarbon

        logging.getLogger("codecarbon").setLevel(logging.ERROR)
        self.tracker = codecarbon.OfflineEmissionsTracker(
            country_iso_code=country, output_methods=[], log_level="error", allow_multiple_runs=True
        )
        form = {"kilowatt_hours": float, "co2_grams": float, "first_step": int, "country": str}
        so_far = {} if misfit(noted, form) or noted["country"] != country else noted
        self.first_step: int = so_far.get("first_step", step)
        self.kilowatt_hours: float = so_far.get("kilowatt_hours", 0.0)
        self.grams: float = so_far.get("co2_grams", 0.0)
        self.about = {"country": country, "tool": f"codecarbon {codecarbon.__version__}"}
        self.tracker.start_task()

    def read(self, step: int) -> dict:
        """Return the energy and the CO2 up to a step, from which step on, and how they were estimated."""
        try:
            data = self.tracker.stop_task()
            self.kilowatt_hours += data.energy_consumed
            self.grams += 1000 * data.emissions
        finally:
            self.tracker.start_task()
        numbers = {"kilowatt_hours": self.kilowatt_hours, "co2_grams": self.grams}
        return {**numbers, "first_step": self.first_step, "last_step": step, **self.about}

    def stop(self):
        """End the threads of the measurement."""
        self.tracker.stop_task()
