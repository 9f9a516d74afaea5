"""The sampling pipeline: from noise to pictures (Algorithm 2 of Ho et al. 2020, arXiv 2006.11239).

A saved pipeline holds the source files of its classes, and its model_index.json names them. So one folder loads in two
ways. This class uses the installed package instead of those files. Without the package, stock diffusers loads the files
with `trust_remote_code=True`.

This file is self-contained: a Hub repository ships it beside the weights, so it imports torch, diffusers and the Pillow
of diffusers only.
"""

import importlib
import inspect
import json
import math
import operator
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

import torch
from diffusers import DDPMScheduler, ModelMixin, SchedulerMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput, snapshot_download
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

# The source files that a saved pipeline holds. Where this package is installed, they are its modules.
SHIPPED_MODULES = ("pipeline_ddpm_custom", "unet_ddpm", "scheduling_ddpm_linear")
# The arguments that model_index.json holds, and their names there. Other pipelines pass over names that begin with _.
RECOMMENDED_STEPS, DISTILLED = "_num_inference_steps", "_distilled"
NAMES_IN_INDEX = {"num_inference_steps": RECOMMENDED_STEPS, "distilled": DISTILLED}
OF_VARIANCE = ("DDPMLinearScheduler", "DDPMScheduler", "DDPMParallelScheduler")  # they read a learned variance
LEAST_ALPHA = 0.003  # of `guidance_fn`; the paper's schedule ends at 0.006, and others without a signal
CPU_PIXELS = 2**16  # pixels that a CPU computes at once; more of them take memory and gain no speed
INSTALLED_PACKAGE = __package__ if __name__ == "ddpm_hf.pipeline_ddpm_custom" else None


class DDPMPipelineCustom(DiffusionPipeline):
    """Image generation, unconditional or of a class, with a denoising U-Net and any diffusers scheduler.

    Args:
        unet ([`DDPMUNetModel`] or [`~diffusers.UNet2DModel`]): The network that predicts the noise in `x_t`.
        scheduler ([`DDPMLinearScheduler`] or another of diffusers): The reverse process.
        num_inference_steps (`int`, *optional*): Denoising steps that are recommended for this model. A call takes them
            unless it says otherwise. The default is the T of training.
        distilled (`dict`, *optional*): Of a student that learned to draw in few steps: the `steps` that it is trained
            for, and the `guidance_scale` of its teacher, which it draws with if a call passes none.

    Example:
        >>> import torch
        >>> from ddpm_hf import DDPMPipelineCustom
        >>> pipeline = DDPMPipelineCustom.from_pretrained("user/repo")
        >>> images = pipeline(batch_size=16, generator=torch.Generator().manual_seed(0)).images
    """

    model_cpu_offload_seq = "unet"

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        num_inference_steps: int | None = None,
        distilled: dict | None = None,
    ):
        super().__init__()
        if num_inference_steps is not None:
            num_inference_steps = _whole_number("num_inference_steps", num_inference_steps)
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(num_inference_steps=num_inference_steps, distilled=distilled)

    @property
    def default_num_inference_steps(self) -> int:
        """Denoising steps of a call that does not name them: the recommended ones, or all T."""
        T = self.scheduler.config.num_train_timesteps
        return min(self.config.get("num_inference_steps") or T, T)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict | None] | None = None,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] = (0.0, 1.0),
        guidance_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        guidance_fn_scale: float | Sequence[float] = 1.0,
    ) -> ImagePipelineOutput | tuple:
        """Draw images.

        Args:
            batch_size (`int`, *optional*): Number of images. The default is one for each of `class_labels`, or one. The
                network computes them in parts if the memory is too small for all at once.
            generator (`torch.Generator` or a list or tuple of them, *optional*): Source of all noise. A list holds one
                generator for each image, and then an image does not depend on the others of its batch.
            num_inference_steps (`int`, *optional*): Number of denoising steps. The default is what the model
                recommends, or else the T of training.
            output_type (`str`): `"pil"` (mode L for one channel, RGB for three; samples of a network with a
                `pixel_format` come in the form of its training data, as pictures of Pillow or as arrays `(height,
                width, channels)` with the range undone), `"np"` for an array `(batch, height,
                width, channels)` or `"pt"` for a tensor `(batch, channels, height, width)`, both in [0, 1].
            return_dict (`bool`): Whether to return an [`~diffusers.ImagePipelineOutput`] instead of a tuple.
            callback_on_step_end (callable, *optional*): Called after each step as `callback(pipeline, step, timestep,
                {"sample": x})` with the new x_{t-1}. It returns None, or a dictionary whose `"sample"` replaces x.
            class_labels (`int`, `str`, or a list or tensor of them, *optional*): Labels for a class-conditional model,
                one for all images or one for each. The default: labels drawn as often as the training images have them
                (`class_frequencies`), or no class if the model does not know how often that is. A `str` is one of
                `pipeline.unet.config.class_names`. An `int` means the class whose name is that number. If no name is a
                whole number, it means the position among the names. So `[5]` of the classes "0", "5", "9" is "5", and
                `[1]` of "cat", "dog" is "dog".
            guidance_scale (`float`): w in the prediction `eps(x_t) + w (eps(x_t, label) - eps(x_t))` (Ho and Salimans
                2022, arXiv 2207.12598; their w is one less). 1 is the plain class-conditional model. A larger w gives
                clearer and less varied images of the class.
            guidance_interval (`tuple[float, float]`): The part of the reverse process that is guided, from 0, pure
                noise, to 1, the picture (Kynkaanniemi et al. 2024, arXiv 2404.07724). The step at timestep t is at
                `1 - t / T`, with every scheduler and number of steps; both ends are guided. The other steps are those
                of the plain class-conditional model, with one call of the network instead of two. The default is all.
            guidance_fn (callable, *optional*): A loss that the images make small. It is called as
                `guidance_fn(x_0, timestep)` with the x_0 that the network predicts from x_t, `(n, channels, height,
                width)`, float32, in [-1, 1] if the scheduler has `clip_sample`. It returns the loss of each image,
                `(n,)`. Its gradient leads the images: they are drawn from about `p(x) exp(-scale loss)`. The n images
                are all of the batch, or as many as the memory allows.
            guidance_fn_scale (`float` or a list of them): What to multiply the loss with, a number or one for each of
                `scheduler.timesteps`.

        Returns:
            [`~diffusers.ImagePipelineOutput`] or `tuple`: The images.

        Raises:
            ValueError: If an argument does not fit (before any step is taken), if the callback or `guidance_fn` returns
                something else, or if the samples are NaN.
        """
        if batch_size is not None:
            batch_size = _whole_number("batch_size", batch_size)
        if num_inference_steps is not None:
            num_inference_steps = _whole_number("num_inference_steps", num_inference_steps)
        guidance_scale = _finite_number("guidance_scale", guidance_scale)
        self._check_student(num_inference_steps, guidance_scale)
        guidance_interval = _guided_part(guidance_interval, guidance_scale)
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise ValueError(f"`callback_on_step_end={_shown(callback_on_step_end)}`; expected a function.")
        if guidance_fn is not None and not callable(guidance_fn):
            raise ValueError(f"`guidance_fn={_shown(guidance_fn)}`; expected a function.")
        if guidance_fn is not None and torch.is_inference_mode_enabled():
            raise ValueError("`guidance_fn` needs gradients; call the pipeline outside of `torch.inference_mode()`.")
        if guidance_fn is None and (hasattr(guidance_fn_scale, "__len__") or guidance_fn_scale != 1):
            raise ValueError(
                f"`guidance_fn_scale={_shown(guidance_fn_scale)}` belongs to `guidance_fn`, and there is none."
            )
        if class_labels is None and self.unet.config.get("class_frequencies"):
            batch_size = 1 if batch_size is None else batch_size
            generator = _check_generator(generator, batch_size, self._execution_device)
            class_labels = draw_labels(self.unet.config, batch_size, generator)
        labels = self._label_numbers(class_labels, batch_size, guidance_scale)
        if batch_size is None:
            batch_size = 1 if labels is None else len(labels)
        shape = self._check_inputs(batch_size, output_type)
        device = self._execution_device
        generator = _check_generator(generator, batch_size, device)
        # A GPU raises an error when its memory is full. A process that fills the main memory is killed.
        self._images_at_once = max(1, CPU_PIXELS // (shape[2] * shape[3])) if device.type == "cpu" else sys.maxsize
        steps = self.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        self.scheduler.set_timesteps(steps, device=device)
        is_edm = hasattr(self.scheduler, "precondition_outputs")
        if not is_edm:  # EDM's schedulers have other timesteps
            check_timesteps(self.scheduler, steps, guidance_interval)
        network = self._network(labels, guidance_scale, guidance_interval)
        if guidance_fn is not None:
            scales = _scales(guidance_fn_scale, len(self.scheduler.timesteps))
            network = self._guided_by(guidance_fn, scales, labels, guidance_scale, guidance_interval)
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        step_kwargs = {"generator": generator} if takes_generator else {}
        predict = self._predict_for_edm if is_edm else self._predict

        # 1. x_T ~ N(0, I), scaled to where this scheduler starts.
        x = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        x = x * self.scheduler.init_noise_sigma

        # 2. For t = T, ..., 1: predict the noise in x_t, and draw x_{t-1}.
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            x = self.scheduler.step(predict(network, x, t), t, x, **step_kwargs).prev_sample
            if callback_on_step_end is not None:
                x = _sample_of(callback_on_step_end(self, i, t, {"sample": x}), x)

        # 3. [-1, 1] -> [0, 1] -> pictures.
        images = (x / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float()  # (B, H, W, C)
            if images.isnan().any():
                raise ValueError("The samples are NaN: the weights are broken or too large; load other weights.")
            images = images.numpy()
        if output_type == "pil":
            about = self.unet.config.get("pixel_format")
            images = _in_form(images, about) if about else self.numpy_to_pil(images)

        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _check_student(self, steps: int | None, guidance_scale: float):
        """Raise a ValueError if a student shall draw otherwise than it has learned."""
        if not (student := self.config.get("distilled")):
            return
        if steps not in (None, student["steps"]):
            raise ValueError(f"`num_inference_steps={steps}`: the model is a student of {student['steps']} steps.")
        if guidance_scale != 1:
            raise ValueError(
                f"`guidance_scale={guidance_scale}`: the model is a student, and has the guidance of its teacher in it."
            )

    def _network(
        self, labels: list[int] | None, guidance_scale: float, guidance_interval: tuple[float, float] = (0.0, 1.0)
    ) -> Callable[..., torch.Tensor]:
        """Return the network as a function of x_t and t, for these labels and with this guidance."""
        if labels is None:
            return lambda x_t, t: self._in_parts(lambda x: self.unet(x, t).sample, x_t)
        of_images = torch.tensor(labels, device=self._execution_device)  # (B,)

        def conditional(x_t, t, labels=of_images):
            return self._in_parts(lambda x, y: self.unet(x, t, class_labels=y).sample, x_t, labels)

        if guidance_scale == 1:
            return conditional
        no_class = torch.full_like(of_images, len(self.unet.config.class_names))
        both = torch.cat((of_images, no_class))  # (2 B,)
        (start, end), T = guidance_interval, self.scheduler.config.num_train_timesteps

        def guided(x_t, t):
            with_label, without = conditional(torch.cat((x_t, x_t)), t, both).chunk(2)
            guided = without + guidance_scale * (with_label - without)
            C = x_t.shape[1]
            return torch.cat((guided[:, :C], with_label[:, C:]), dim=1)  # a learned variance is not guided

        def guided_in_part(x_t, t):
            return guided(x_t, t) if start <= (T - float(t)) / T <= end else conditional(x_t, t)

        return guided if (start, end) == (0, 1) else guided_in_part

    def _guided_by(
        self,
        guidance_fn: Callable,
        scales: list[float],
        labels: list[int] | None,
        guidance_scale: float,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
    ) -> Callable[..., torch.Tensor]:
        """Return the network as a function of x_t and t that follows the gradient of a loss (arXiv 2105.05233, 4.2).

        The images are then drawn from `p(x) exp(-s loss)` instead of p(x). This adds -s g to the gradient of
        log p(x_t), where g is the gradient of the loss at the predicted x_0 with respect to x_t. The gradient of
        log p(x_t) is `-eps / sigma`, so with `alpha = sqrt(alpha_bar)` and `sigma = sqrt(1 - alpha_bar)` the prediction
        becomes

            eps + s sigma g,    x_0 - s sigma^2 / alpha g,    or    v + s sigma / alpha g.
        """
        # The x_0 of the loss is clipped as in the step, but its gradient is not: a clipped one would be zero.
        config, device = self.scheduler.config, self._execution_device
        limit = config.get("clip_sample_range", 1.0) if config.get("clip_sample") else math.inf
        log_sigmas, of_step = _log_sigmas(self.scheduler).float().to(device), iter(scales)

        def predict(x_t, t):
            t = t.to(device)
            below = t.long()
            above = (below + 1).clamp(max=len(log_sigmas) - 1)
            ratio = log_sigmas[below].lerp(log_sigmas[above], (t - below).float()).exp()  # sigma / alpha
            alpha = (1 + ratio**2).rsqrt()
            sigma, scale = ratio * alpha, next(of_step)
            at_least = alpha.clamp(min=LEAST_ALPHA)  # where x_t says nothing about x_0, its gradient is noise

            def of_part(x_t, images):
                its_labels = [labels[i] for i in images.tolist()] if labels else None
                network = self._network(its_labels, guidance_scale, guidance_interval)
                with torch.enable_grad():
                    x = x_t.detach().requires_grad_()
                    output = network(x, t)
                    prediction = output[:, : x.shape[1]].float()  # a learned variance takes the other channels
                    match config.prediction_type:
                        case "epsilon":
                            x_0, change = (x.float() - sigma * prediction) / alpha, sigma
                        case "sample":
                            x_0, change = prediction, -(sigma**2) / at_least
                        case "v_prediction":
                            x_0, change = alpha * x.float() - sigma * prediction, sigma / at_least
                    x_0 = x_0 + (x_0.clamp(-limit, limit) - x_0).detach()
                    (g,) = torch.autograd.grad(_checked_loss(guidance_fn(x_0, t), len(x)).sum(), x)
                output = output.detach().clone()
                output[:, : x.shape[1]] += (scale * change * g.float()).to(output)
                return output

            return self._in_parts(of_part, x_t, torch.arange(len(x_t)))

        return predict

    def _in_parts(self, compute: Callable[..., torch.Tensor], *batches: torch.Tensor) -> torch.Tensor:
        """Return what a function computes of batches of any size, in parts that fit into the memory."""
        while True:
            size = min(self._images_at_once, len(batches[0]))
            try:
                return torch.cat([compute(*parts) for parts in zip(*(batch.split(size) for batch in batches))])
            except torch.OutOfMemoryError:
                if size == 1 or torch.is_grad_enabled():  # a gradient keeps all parts in the memory
                    raise
            self._images_at_once = size // 2

    def _predict(self, network: Callable[..., torch.Tensor], x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the network's output at x, scaled as the scheduler says, and t."""
        # Some schedulers give x the type of the prediction. Under autocast that is bf16, and each step would round x.
        output = network(self.scheduler.scale_model_input(x, t), t).to(x.dtype)
        takes_variance = any(kind.__name__ in OF_VARIANCE for kind in type(self.scheduler).__mro__)
        return output if takes_variance else output[:, : x.shape[1]]

    def _predict_for_edm(self, network: Callable[..., torch.Tensor], x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the network's prediction in the form that EDM's schedulers expect (arXiv 2206.00364, eq. 7).

        Their x is x_0 + sigma eps. They expect the F of `D = c_skip x + c_out F`, where D is the prediction of x_0. So
        this finds the t at which x_t is a multiple of x, asks the network for D, and solves for F.
        """
        scheduler = self.scheduler
        scheduler.scale_model_input(x, t)  # only to let the scheduler count its steps
        sigma = scheduler.sigmas[scheduler.step_index].double()
        log_sigmas = _log_sigmas(scheduler)
        above = torch.searchsorted(log_sigmas, sigma.log()).clamp(1, len(log_sigmas) - 1)
        low, high = log_sigmas[above - 1], log_sigmas[above]
        t = (above - 1 + (sigma.log() - low) / (high - low)).clamp(0, len(log_sigmas) - 1).float()

        sigma = sigma.to(x)
        root_alpha_bar = (1 + sigma**2).rsqrt()
        model_output = network(root_alpha_bar * x, t)[:, : x.shape[1]]
        if scheduler.config.prediction_type == "v_prediction":
            D = root_alpha_bar**2 * x - sigma * root_alpha_bar * model_output
        else:
            D = x - sigma * model_output
        c_skip_x = scheduler.precondition_outputs(x, torch.zeros_like(x), sigma)
        c_out = scheduler.precondition_outputs(0, 1, sigma)
        return (D - c_skip_x) / c_out

    def _label_numbers(self, class_labels, batch_size: int | None, guidance_scale: float) -> list[int] | None:
        """Return the class number of each image; raise a ValueError for labels that this model does not have."""
        count, names = self.unet.config.get("num_class_embeds"), self.unet.config.get("class_names")
        if guidance_scale != 1 and not names:
            raise ValueError(
                f"`guidance_scale={guidance_scale}` needs a model that was trained with labels and without them, by "
                "`train_ddpm.py --class_conditional`; for this model, expected 1."
            )
        if class_labels is None:
            if guidance_scale != 1:
                raise ValueError(
                    f"`guidance_scale={guidance_scale}` leads to `class_labels`, and there are none; pass labels, or 1."
                )
            if count is not None and not names:
                raise ValueError(
                    "`class_labels` are missing: this model draws images of a class; expected a whole number from 0 to "
                    f"{count - 1}, or one for each image."
                )
            return None
        if count is None:
            raise ValueError(f"`class_labels={_shown(class_labels)}` do not fit an unconditional model; expected none.")
        if hasattr(class_labels, "tolist"):  # a tensor, or an array of NumPy
            class_labels = class_labels.tolist()
        if isinstance(class_labels, str) or _is_whole(class_labels):
            class_labels = [class_labels] * (1 if batch_size is None else batch_size)
        if not isinstance(class_labels, (list, tuple, range)) or not class_labels:
            raise ValueError(f"`class_labels={_shown(class_labels)}`; expected a label or a list of them.")
        if batch_size is not None and len(class_labels) != batch_size:
            raise ValueError(
                f"`class_labels` has {len(class_labels)} labels; expected one, or one for each of {batch_size} images."
            )
        return _class_numbers(class_labels, names or (), count)

    def _check_inputs(self, batch_size: int, output_type: str) -> tuple[int, int, int, int]:
        """Raise a ValueError for arguments that do not fit; return the shape of the samples."""
        size, channels = self.unet.config.sample_size, self.unet.config.in_channels
        if size is None:
            raise ValueError("The U-Net's configuration has no `sample_size`; expected height and width of the images.")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type={output_type!r}`; expected 'pil', 'np' or 'pt'.")
        if output_type == "pil" and channels not in (1, 3) and not self.unet.config.get("pixel_format"):
            raise ValueError(
                f"The model draws {channels} channels; expected 1 or 3 for pictures. Pass `output_type='np'` or 'pt'."
            )
        height, width = (size, size) if isinstance(size, int) else size
        return (batch_size, channels, height, width)

    # ---- Saving and loading ----------------------------------------------------------------------------------------

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Write model_index.json and the source files of the pipeline and its components."""
        classes = {"": (type(self).__module__, type(self).__name__), **self.config}
        for folder, entry in classes.items():
            module = entry[0] if isinstance(entry, (tuple, list)) else None
            if module and _shipped_module(module):
                source = Path(inspect.getfile(sys.modules[module]))
                target = Path(save_directory, folder, source.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        # The components' configurations exist by now. That of a diffusers U-Net holds the path it was loaded from.
        for file in Path(save_directory).glob("*/config.json"):
            config = json.loads(file.read_text(encoding="utf-8"))
            if config.pop("_name_or_path", None):
                file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def to_json_string(self) -> str:
        """Return the contents of model_index.json, with shipped classes by their files and without local paths."""
        config = json.loads(super().to_json_string())
        config.pop("_name_or_path", None)
        for argument, name in NAMES_IN_INDEX.items():
            if value := config.pop(argument, None):
                config[name] = value
        config["_class_name"] = [type(self).__module__, type(self).__name__]
        for key, entry in config.items():
            if isinstance(entry, list) and _shipped_module(entry[0]):
                config[key] = [_shipped_module(entry[0]), entry[1]]
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        """Return the arguments that model_index.json has for the constructor, as diffusers asks for them."""
        found = {argument: config_dict[name] for argument, name in NAMES_IN_INDEX.items() if name in config_dict}
        config_dict = {**config_dict, **found}
        return super().extract_init_dict(config_dict, **kwargs)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Read model_index.json. If the package is installed, shipped classes come from it and not from the files.

        Raises:
            ValueError: If the file does not name classes.
        """
        loaded = super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple if `return_unused_kwargs=True`
        _check_index(pretrained_model_name_or_path, config)
        for key, entry in config.items():
            if INSTALLED_PACKAGE and isinstance(entry, list) and entry[0] in SHIPPED_MODULES:
                module = importlib.import_module(f"{INSTALLED_PACKAGE}.{entry[0]}")
                config[key] = entry[1] if key == "_class_name" else [module.__name__, entry[1]]
        return loaded

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs) -> str:
        """Download a repository into the cache. If the package is installed, leave out its shipped source files.

        Raises:
            ValueError: If its model_index.json does not name classes.
        """
        keys = ("revision", "cache_dir", "force_download", "token", "local_files_only")
        options = {key: kwargs[key] for key in keys if key in kwargs}
        if INSTALLED_PACKAGE and kwargs.get("custom_pipeline") is None:
            config = super().load_config(pretrained_model_name, **options)
            _check_index(pretrained_model_name, config)
            if isinstance(config["_class_name"], list) and config["_class_name"][0] in SHIPPED_MODULES:
                variant = kwargs.get("variant")
                weights = f"*.{variant}*.safetensors" if variant else "*.safetensors"
                return snapshot_download(
                    pretrained_model_name,
                    allow_patterns=["*.json", weights],
                    ignore_patterns=None if variant else "*.*.safetensors",  # the weights of variants
                    **options,
                )
        return super().download(pretrained_model_name, **kwargs)


def _shipped_module(module: str | None) -> str | None:
    """Return the name of a shipped file if this is its module, installed or copied by diffusers; else None."""
    name = (module or "").split(".")[-1]
    return name if name in SHIPPED_MODULES else None


def _check_index(source, index):
    """Raise a ValueError if a model_index.json does not name classes."""
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), (str, list)):
        raise ValueError(
            f"The model_index.json of {source} is {_shown(index)}; expected the names of classes for each component. "
            "Save the pipeline again."
        )
    for key, entry in index.items():
        is_pair = isinstance(entry, list) and len(entry) == 2 and all(isinstance(name, str) for name in entry)
        if (isinstance(entry, list) or key in ("unet", "scheduler")) and not is_pair and entry != [None, None]:
            raise ValueError(
                f"The model_index.json of {source} has `{key}={_shown(entry)}`; expected two names, of a module and a "
                "class. Save the pipeline again."
            )


# ---- Pixels --------------------------------------------------------------------------------------------------------

WHOLE_NUMBERS = {"uint8": (0, 255), "uint16": (0, 65535), "int16": (-32768, 32767)}


def _in_form(images, about: Mapping) -> list:
    """Return samples `(B, H, W, C)`, float32 in [0, 1], in the form of the training data.

    Args:
        images (`numpy.ndarray`): The samples.
        about (`dict`): The `pixel_format` of the network's configuration.

    Returns:
        `list`: Pictures of Pillow if such data are kept as .png, else arrays `(H, W, C)` of the type of the data.
    """
    numbers = about["low"] + images.astype("float64") * (about["high"] - about["low"])
    if about["dtype"] in WHOLE_NUMBERS:
        numbers = numbers.round().clip(*WHOLE_NUMBERS[about["dtype"]])
    arrays = numbers.astype(about["dtype"])
    if about["suffix"] != ".png":
        return list(arrays)
    return [Image.fromarray(array[..., 0] if array.shape[2] == 1 else array) for array in arrays]


# ---- Labels --------------------------------------------------------------------------------------------------------


def draw_labels(config, count: int, generator: torch.Generator | list[torch.Generator] | None) -> list[str]:
    """Draw names of classes as often as the training images have them.

    Args:
        config: The configuration of the U-Net, with `class_names` and `class_frequencies`.
        count (`int`): Number of labels.
        generator (`torch.Generator` or a list of them, *optional*): From a list, each draws the label of its image.
    """
    if isinstance(generator, list):
        return [label for each in generator for label in draw_labels(config, 1, each)]
    weights = torch.tensor(config.class_frequencies, device=generator.device if generator else "cpu")
    numbers = weights.multinomial(count, replacement=True, generator=generator)
    return [config.class_names[i] for i in numbers.tolist()]


# ---- Checks of arguments -------------------------------------------------------------------------------------------


def _is_whole(value) -> TypeGuard[int]:
    """Tell whether this is a whole number. NumPy's and PyTorch's count, True and False do not."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def _whole_number(name: str, value) -> int:
    """Return a whole number of at least 1 as an `int`; raise a ValueError for other values."""
    if not _is_whole(value) or value < 1:
        raise ValueError(f"`{name}={_shown(value)}`; expected a whole number, at least 1.")
    return operator.index(value)


def _finite_number(name: str, value) -> float:
    """Return a finite number as a `float`; raise a ValueError for other values."""
    try:
        number = math.nan if isinstance(value, (str, bytes, bool)) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"`{name}={_shown(value)}`; expected a finite number.")
    return number


def _guided_part(guidance_interval, guidance_scale: float) -> tuple[float, float]:
    """Return the start and the end of the guidance; raise a ValueError for other values, or if nothing is guided."""
    try:
        start, end = (_finite_number("guidance_interval", each) for each in guidance_interval)
    except (TypeError, ValueError):
        start = end = math.nan
    if not 0 <= start < end <= 1:
        raise ValueError(
            f"`guidance_interval={_shown(guidance_interval)}`; expected two numbers from 0, pure noise, to 1, the "
            "picture, the lower one first; (0.5, 1) is the second half."
        )
    if guidance_scale == 1 and (start, end) != (0, 1):
        raise ValueError(
            f"`guidance_interval={_shown(guidance_interval)}` is a part of the guidance, and `guidance_scale=1` is "
            "none; pass another scale, or no interval."
        )
    return start, end


def check_timesteps(scheduler, steps: int, interval: tuple[float, float] = (0.0, 1.0)):
    """Raise a ValueError if a scheduler has a timestep of -1, or no step that is guided in this interval."""
    # Rounding adds the timestep -1 to some "trailing" ones of diffusers; 61 of 1,000 are the first such case. Their
    # number tells it. A look at them would wait for the GPU.
    T, is_trailing = scheduler.config.num_train_timesteps, scheduler.config.get("timestep_spacing") == "trailing"
    if is_trailing and math.ceil(T / (T / steps)) != steps and len(scheduler.timesteps) != steps:
        raise ValueError(
            f"`num_inference_steps={steps}`: {type(scheduler).__name__} would end at timestep -1 with "
            "`timestep_spacing='trailing'`; take another number of steps."
        )
    if interval == (0, 1):
        return
    ways = [(T - t) / T for t in scheduler.timesteps.tolist()]
    if not any(interval[0] <= way <= interval[1] for way in ways):
        raise ValueError(
            f"`guidance_interval={interval}` holds no step: those of {len(ways)} steps are at {ways[0]:.3g} to "
            f"{ways[-1]:.3g} of the way; widen it."
        )


def _class_numbers(labels: Sequence, names: Sequence[str], count: int) -> list[int]:
    """Return the class numbers of labels, found by name, or by position if no name is a number."""
    numbered = {int(name): i for i, name in enumerate(names) if re.fullmatch(r"-?\d+", name)}
    positions = {i: i for i in range(count)}
    meant = (numbered or positions) | {name: i for i, name in enumerate(names)}
    numbers = []
    for label in labels:
        key = operator.index(label) if _is_whole(label) else label if isinstance(label, str) else None
        if key not in meant:
            known = f"one of {', '.join(names)}" if names else f"a whole number from 0 to {count - 1}"
            hint = f", or its number from 0 to {count - 1}" if names and not numbered else ""
            raise ValueError(f"`class_labels`: there is no {_shown(label)}; expected {known}{hint}.")
        numbers.append(meant[key])
    return numbers


def _check_generator(
    generator, batch_size: int, device: torch.device
) -> torch.Generator | list[torch.Generator] | None:
    """Return the generator, or a list of one for each image; raise a ValueError for anything else."""
    if generator is None:
        return None
    generators = list(generator) if isinstance(generator, (list, tuple)) else [generator]
    for each in generators:
        if not isinstance(each, torch.Generator):
            raise ValueError(
                f"`generator={_shown(generator)}`; expected torch.Generator().manual_seed(n), or a list of them."
            )
        if each.device.type not in ("cpu", device.type):
            raise ValueError(f"`generator` is on {each.device}; expected one on the CPU or on {device}.")
    if isinstance(generator, torch.Generator):
        return generator
    if len(generators) != batch_size:
        raise ValueError(f"`generator` is a list of {len(generators)}; expected one for each of {batch_size} images.")
    return generators


def _scales(value, steps: int) -> list[float]:
    """Return the scale of `guidance_fn` at each step; raise a ValueError for other values."""
    value = value.tolist() if hasattr(value, "tolist") else value  # of a tensor, or an array of NumPy
    if not isinstance(value, (list, tuple)):
        return [_finite_number("guidance_fn_scale", value)] * steps
    if len(value) != steps:
        raise ValueError(
            f"`guidance_fn_scale` has {len(value)} numbers; expected one, or one for each of {steps} steps."
        )
    return [_finite_number("guidance_fn_scale", each) for each in value]


def _checked_loss(loss, count: int) -> torch.Tensor:
    """Return what `guidance_fn` returned; raise a ValueError if that is not a loss of each image."""
    if not torch.is_tensor(loss) or loss.shape != (count,) or not loss.requires_grad:
        found = f"a tensor of shape {tuple(loss.shape)}" if torch.is_tensor(loss) else _shown(loss)
        without = ", without a gradient" if torch.is_tensor(loss) and not loss.requires_grad else ""
        raise ValueError(
            f"`guidance_fn` returned {found}{without}; expected the loss of each image, a tensor of shape ({count},) "
            "that PyTorch computes from x_0: for example ((x_0 - target) ** 2).mean((1, 2, 3))."
        )
    return loss


def _log_sigmas(scheduler: SchedulerMixin) -> torch.Tensor:
    """Return log(sqrt((1 - alpha_bar_t) / alpha_bar_t)), `(T,)`, float64, ascending."""
    # Some schedules leave no signal at the end; then this is large, and not infinite.
    alpha_bar = DDPMScheduler.from_config(scheduler.config).alphas_cumprod.double().clamp(2.0**-100, 1 - 2.0**-24)
    return ((1 - alpha_bar) / alpha_bar).log() / 2


def _sample_of(returned, x: torch.Tensor) -> torch.Tensor:
    """Return the sample that a callback returned, or x if it returned none."""
    if returned is None:
        return x
    known = isinstance(returned, Mapping) and returned.keys() <= {"sample"}
    sample = returned.get("sample", x) if known else None
    if not torch.is_tensor(sample) or sample.shape != x.shape or sample.dtype != x.dtype:
        raise ValueError(
            f'`callback_on_step_end` returned {_shown(returned)}; expected None, or a dictionary with only a "sample", '
            f"a tensor of shape {tuple(x.shape)} and type {x.dtype}."
        )
    return sample


def _shown(value) -> str:
    """Return a value as text for an error message: one line, at most 100 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
