"""A Hub for the tests of this folder."""

import os

import huggingface_hub
import pytest
from hub_users import ORGANISATIONS, USERS
from huggingface_hub import constants
from loopback_hub import LoopbackHub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Point huggingface_hub of this process at a loopback Hub."""
    with LoopbackHub(USERS, ORGANISATIONS) as hub:
        for name in [name for name in os.environ if name.startswith("HF_")]:
            monkeypatch.delenv(name)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url),
        )
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub
        huggingface_hub.close_session()
