"""Reading what runs of train_ddpm.py leave behind."""

import json

import torch

from ddpm_hf import DDPMUNetModel


def weights(folder):
    return DDPMUNetModel.from_pretrained(folder, subfolder="unet").state_dict()


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
