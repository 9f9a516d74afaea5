"""The teacher of a student that draws in few steps (Salimans and Ho 2022, arXiv 2202.00512)."""

from functools import cached_property

import torch

from ddpm_hf.config import TrainingConfig
from ddpm_hf.loading import load_unet
from ddpm_hf.precision import autocast
from ddpm_hf.scheduling_ddpm_linear import DDPMLinearScheduler
from ddpm_hf.training.model import make_model
from ddpm_hf.training.objective import student_timesteps
from ddpm_hf.training.pretrained import adapt
from ddpm_hf.training.resuming import Start
from ddpm_hf.unet_ddpm import DDPMUNetModel
from ddpm_hf.weights import digest_of_weights


class Teacher:
    """Several steps of a trained network, which one step of the student replaces.

    Both steps are DDIM's (arXiv 2010.02502, eq. 12 with sigma = 0). They begin at a timestep of the student, see
    [`~ddpm_hf.training.objective.student_timesteps`], and end at the next one, or at x_0.

    Args:
        unet ([`DDPMUNetModel`]): The trained network.
        scheduler ([`DDPMLinearScheduler`]): The alpha_bar of the student and of the teacher.
        config ([`TrainingConfig`]): The options of the group "Distillation"; `base` says what the teacher predicts.
        device (`torch.device`): Of the training.
    """

    def __init__(
        self, unet: DDPMUNetModel, scheduler: DDPMLinearScheduler, config: TrainingConfig, device: torch.device
    ):
        self.unet, self.config, self.device = unet.to(device).eval().requires_grad_(False), config, device
        self.scheduler = DDPMLinearScheduler(**{**scheduler.config, **config.base.get("scheduler", {})})
        self.guidance_scale = config.distill_guidance_scale
        alpha_bar = torch.cat((torch.ones(1), scheduler.alphas_cumprod.float()))  # the first is that of t = -1, x_0
        self.alphas, self.sigmas = alpha_bar.sqrt().to(device), (1 - alpha_bar).sqrt().to(device)
        starts = student_timesteps(config)
        ends = torch.full((config.ddpm_num_steps,), -1)  # where a step of the student from t ends; -1 is x_0
        ends[starts] = (starts - config.ddpm_num_steps // len(starts)).clamp(min=-1)
        self.ends = ends.to(device)

    @cached_property
    def fingerprint(self) -> str:
        """16 digits that change with its weights."""
        return digest_of_weights(self.unet).hex()[:16]

    @classmethod
    def of_run(cls, config: TrainingConfig, channels: int, device: torch.device) -> "Teacher":
        """Load the teacher that the options name, adapted to the run's channels and labels as the student is.

        Raises:
            ValueError: If it cannot be read; the message names it.
        """
        name = config.pretrained_model_name_or_path
        assert name is not None  # the options are checked
        unet, scheduler = make_model(config, channels)
        try:
            adapt(load_unet(name, token=config.hub_token), unet)
        except (ValueError, OSError) as error:
            raise ValueError(f"--pretrained_model_name_or_path {name}, the teacher: {error}") from error
        return cls(unet, scheduler, config, device)

    @torch.no_grad()
    def teach(
        self, x_0: torch.Tensor, t: torch.Tensor, eps: torch.Tensor, class_labels: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return another image and noise of the same x_t: those that lead the student where the teacher's steps end.

        Args:
            x_0 (`torch.Tensor`, `(batch, channels, height, width)`): Images in [-1, 1].
            t (`torch.Tensor`, `(batch,)`): Timesteps of the student.
            eps (`torch.Tensor`, like x_0): Noise from N(0, I).
            class_labels (`torch.Tensor`, `(batch,)`, *optional*): Labels, for a class-conditional model.

        Returns:
            `tuple`: x_0 and eps, like those given.
        """
        x_t = self._alpha(t) * x_0 + self._sigma(t) * eps
        end, steps = self.ends[t], self.config.distill_teacher_steps

        # 1. The steps of the teacher, evenly spaced from t to the end.
        x = x_t
        for m in range(steps):
            now, then = (t - torch.div((t - end) * i, steps, rounding_mode="floor") for i in (m, m + 1))
            x_0 = self._predict_x_0(x, now, class_labels)
            eps = (x - self._alpha(now) * x_0) / self._sigma(now)
            x = self._alpha(then) * x_0 + self._sigma(then) * eps

        # 2. Solve x = alpha_end x_0 + sigma_end eps, where alpha_t x_0 + sigma_t eps = x_t (2202.00512, appendix G).
        ratio = self._sigma(end) / self._sigma(t)
        x_0 = (x - ratio * x_t) / (self._alpha(end) - ratio * self._alpha(t))
        return x_0, (x_t - self._alpha(t) * x_0) / self._sigma(t)

    def _predict_x_0(self, x_t: torch.Tensor, t: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        """Return the prediction of x_0, with guidance.

        It is not clipped: DDIM draws better so, and the student is free to leave [-1, 1] on its way, too.
        """
        with autocast(self.device, self.config.mixed_precision):
            if class_labels is None or self.guidance_scale == 1:
                output = self.unet(x_t, t, class_labels).sample
            else:
                no_class = torch.full_like(class_labels, len(self.unet.config.class_names))
                both = torch.cat((class_labels, no_class))
                conditional, unconditional = self.unet(torch.cat((x_t, x_t)), torch.cat((t, t)), both).sample.chunk(2)
                output = unconditional + self.guidance_scale * (conditional - unconditional)
        return self.scheduler.predict_x_0(output.float(), t, x_t)

    def _alpha(self, t: torch.Tensor) -> torch.Tensor:
        return self.alphas[t + 1].view(-1, 1, 1, 1)

    def _sigma(self, t: torch.Tensor) -> torch.Tensor:
        return self.sigmas[t + 1].view(-1, 1, 1, 1)


def check_teacher(start: Start, teacher: Teacher | None):
    """Raise a ValueError if a run would go on with another teacher than before."""
    if start.saved and teacher and start.saved.get("teacher") != teacher.fingerprint:
        name = teacher.config.pretrained_model_name_or_path
        raise ValueError(
            f"{start.checkpoint} is of a student of other weights than {name} has now. Bring back that teacher, or "
            "name another --output_dir."
        )
