"""Share a run at the end of its training."""

import shlex
from pathlib import Path

from ddpm_hf.config import TrainingConfig
from ddpm_hf.hub.card import write_card
from ddpm_hf.hub.checks import check_name, check_push
from ddpm_hf.hub.push import push_run
from ddpm_hf.terminal import one_line
from ddpm_hf.tokens import hide_tokens


def check_before_training(config: TrainingConfig):
    """If the run is to be pushed, find out whether it can be, and complete `hub_model_id`; see [`check_push`].

    The name is recorded in any case, so it is never a token.
    """
    if config.hub_model_id:
        check_name(config.hub_model_id, config.hub_token)
    if config.push_to_hub:
        repo_id = config.hub_model_id or Path(config.output_dir).resolve().name
        config.hub_model_id = check_push(repo_id, config.hub_token)


def share_run(config: TrainingConfig, finished: bool):
    """Write the card, and push the run if it is finished and to be pushed.

    The model is on the disk by now, so whatever goes wrong here is said in one line, with the command that repeats it.
    """
    folder, repo_id = config.output_dir, config.hub_model_id
    try:
        write_card(folder)
        if config.push_to_hub and finished:
            print(f"Pushed to {push_run(folder, repo_id, config.hub_token, config.hub_private_repo)}.")
    except Exception as error:
        later = f"ddpm-hf push {shlex.quote(str(folder))} --hub_model_id {repo_id or 'USER/NAME'}"
        private = " --hub_private_repo" * config.hub_private_repo
        reason = hide_tokens(one_line(error), config.hub_token)
        print(f"Not shared: {reason}. The model is in {folder}; share it later with: {later}{private}")
