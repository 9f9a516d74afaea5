"""Share a run at the end of its training."""

from ddpm_hf.config import TrainingConfig
from ddpm_hf.hub.card import write_card
from ddpm_hf.hub.checks import check_name, check_push
from ddpm_hf.hub.push import push_run
from ddpm_hf.terminal import as_argument, one_line
from ddpm_hf.tokens import hide_tokens


def check_before_training(config: TrainingConfig):
    """Find out whether the run can be pushed, if it is to be, and complete `hub_model_id`.

    A run that is not pushed records the name too, so a name that holds a token is refused in any case.

    Raises:
        ValueError, OSError: See [`check_push`].
    """
    if config.hub_model_id:
        check_name(config.hub_model_id, config.hub_token)
    if config.push_to_hub:
        config.hub_model_id = check_push(config.hub_model_id or config.folder.resolve().name, config.hub_token)


def share_run(config: TrainingConfig, finished: bool):
    """Write the card, and push the run if it is finished and to be pushed.

    The model is on the disk by now. An error here becomes one line, with the command that shares the run later.
    """
    folder = config.folder
    try:
        write_card(folder)
        if config.push_to_hub and finished:
            assert config.hub_model_id  # `check_before_training` has completed it
            print(f"Pushed to {push_run(folder, config.hub_model_id, config.hub_token, config.hub_private_repo)}.")
    except Exception as error:
        later = f"ddpm-hf push {as_argument(folder)} --hub_model_id {config.hub_model_id or 'USER/NAME'}"
        private = " --hub_private_repo" * config.hub_private_repo
        reason = hide_tokens(one_line(error), config.hub_token)
        print(f"Not shared: {reason}. The model is in {folder}; share it later with: {later}{private}")
