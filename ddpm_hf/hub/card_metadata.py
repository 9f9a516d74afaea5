"""The metadata at the top of the model card, in YAML: what the Hub searches and shows."""

from huggingface_hub import ModelCardData

from ddpm_hf.hub.card_text import bare
from ddpm_hf.hub.card_training import emissions
from ddpm_hf.hub.dataset_cards import DatasetDescription, describe_dataset

TASK = "unconditional-image-generation"


def make_metadata(
    name: str,
    data: DatasetDescription,
    samples: str | None,
    measured: list[dict],
    base_model: str | None,
    facts: dict,
) -> dict:
    """Return the metadata of a card.

    Args:
        name (`str`): The name of the model.
        data ([`DatasetDescription`]): What the model was trained on.
        samples (`str`, *optional*): A picture of samples, by its path in the repository.
        measured (`list[dict]`): What [`~ddpm_hf.hub.card_inputs.read_evaluation`] returns.
        base_model (`str`, *optional*): The model on the Hub that this one was fine-tuned from.
        facts (`dict`): What run.json tells of the hardware and the energy.
    """
    metadata = {
        "library_name": "diffusers",
        "pipeline_tag": TASK,
        **data.model_licence,
        "tags": ["ddpm", "diffusers", TASK, "pytorch"],
    }
    if base_model:
        metadata["base_model"] = base_model
    if data.hub_id:
        metadata["datasets"] = [data.hub_id]
    if samples:
        metadata["widget"] = [{"text": "samples", "output": {"url": samples}}]
    if noted := emissions(facts):
        metadata["co2_eq_emissions"] = {
            "emissions": noted["co2_grams"],
            "source": bare(noted["tool"]),
            "training_type": "fine-tuning" if base_model else "pre-training",
            "geographical_location": bare(noted["country"]),
            "hardware_used": bare(facts["hardware"]),
        }
    if measured:
        metadata["model-index"] = [{"name": name, "results": [_result(metric) for metric in measured]}]
    return metadata


def _result(metric: dict) -> dict:
    """Return a metric in the form of the Hub's model-index."""
    name = metric["dataset"]
    data = describe_dataset({"dataset_name": None if name == "mnist-mini" else name} if name else {})
    return {
        "task": {"type": TASK, "name": "Unconditional image generation"},
        "dataset": {"type": data.hub_id or "unknown", "name": data.name, "split": metric["split"]},
        "metrics": [{"type": metric["type"], "value": metric["value"], "args": metric["args"]}],
    }


def to_yaml(metadata: dict) -> str:
    """Return metadata as huggingface_hub writes it. A card that diffusers saves again then stays the same text."""
    return ModelCardData(**metadata, ignore_metadata_errors=True).to_yaml()
