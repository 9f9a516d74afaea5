"""DDPMLinearScheduler against diffusers' DDPMScheduler, the annotated tutorial's numbers, and the paper's formulas."""

import copy
import itertools
import math
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from oracles import annotated_diffusion

from ddpm_hf import DDPMLinearScheduler

# Parity and finiteness are also tested for combinations that warn.
combinations_that_warn = pytest.mark.filterwarnings("ignore:With `(variance_type|rescale)")

SPACINGS = ("linspace", "leading", "trailing")
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- Parity with diffusers ------------------------------------------------------------------------------------------


def test_default_config_equals_stock():
    ours, stock = DDPMLinearScheduler().config, DDPMScheduler().config
    assert {k: v for k, v in ours.items() if k[0] != "_"} == {k: v for k, v in stock.items() if k[0] != "_"}


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tables_equal_stock(schedule, zero_snr):
    kwargs = {"beta_schedule": schedule, "rescale_betas_zero_snr": zero_snr}
    ours, stock = DDPMLinearScheduler(**kwargs), DDPMScheduler(**kwargs)
    assert torch.equal(ours.betas, stock.betas)
    assert torch.equal(ours.alphas_cumprod, stock.alphas_cumprod)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps_equal_stock(spacing):
    ours, stock = DDPMLinearScheduler(timestep_spacing=spacing), DDPMScheduler(timestep_spacing=spacing)
    for n in range(1, 1001):
        ours.set_timesteps(n)
        stock.set_timesteps(n)
        # For some n (61 is the first), stock's "trailing" has one timestep too many: -1.
        assert torch.equal(ours.timesteps, stock.timesteps[:n])
        assert len(stock.timesteps) == n or stock.timesteps[n] == -1


def test_add_noise_and_velocity_equal_stock():
    ours, stock = DDPMLinearScheduler(), DDPMScheduler()
    x_0, eps = torch.randn(2, 1000, 3, 4, 4, generator=seeded())
    t = torch.arange(1000)
    assert torch.equal(ours.add_noise(x_0, eps, t), stock.add_noise(x_0, eps, t))
    assert torch.equal(ours.get_velocity(x_0, eps, t), stock.get_velocity(x_0, eps, t))


@combinations_that_warn
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large", "learned_range"])
def test_step_equals_stock(variance_type, prediction_type, spacing):
    clippings = (
        {},
        {"clip_sample": False},
        {"thresholding": True, "sample_max_value": 1.5},
        {"clip_sample_range": 2.0},
    )
    for clipping, zero_snr, n in itertools.product(clippings, (False, True), (1, 2, 10, 333, 1000)):
        kwargs = {
            "variance_type": variance_type,
            "prediction_type": prediction_type,
            "timestep_spacing": spacing,
            "rescale_betas_zero_snr": zero_snr,
            **clipping,
        }
        ours, stock = DDPMLinearScheduler(**kwargs), DDPMScheduler(**kwargs)
        ours.set_timesteps(n)
        stock.set_timesteps(n)
        for i in sorted({0, 1, n // 2, n - 2, n - 1} & set(range(n))):
            t = ours.timesteps[i]
            x_t = torch.randn(2, 3, 4, 4, generator=seeded(1))
            output = torch.randn(2, 6 if variance_type == "learned_range" else 3, 4, 4, generator=seeded(2))
            got = ours.step(output, t, x_t, generator=seeded(3))
            wanted = stock.step(output, t, x_t, generator=seeded(3))
            assert got.prev_sample.isfinite().all()
            if wanted.prev_sample.isfinite().all():  # stock divides by zero where eps is undefined
                torch.testing.assert_close(got.prev_sample, wanted.prev_sample, rtol=1e-6, atol=1e-6)
                torch.testing.assert_close(got.pred_original_sample, wanted.pred_original_sample, rtol=1e-6, atol=1e-6)
            else:
                assert zero_snr
                assert prediction_type == "epsilon"


def test_step_equals_stock_for_custom_timesteps_and_before_set_timesteps():
    ours, stock = DDPMLinearScheduler(), DDPMScheduler()
    x_t, eps = torch.randn(2, 1, 1, 4, 4, generator=seeded())
    for t in (0, 1, 500, 999):
        got = ours.step(eps, t, x_t, generator=seeded()).prev_sample
        torch.testing.assert_close(got, stock.step(eps, t, x_t, generator=seeded()).prev_sample, rtol=0, atol=1e-6)
    for scheduler in (ours, stock):
        scheduler.set_timesteps(timesteps=[900, 400, 30, 2])
    for t in (900, 400, 30, 2):
        got = ours.step(eps, t, x_t, generator=seeded()).prev_sample
        torch.testing.assert_close(got, stock.step(eps, t, x_t, generator=seeded()).prev_sample, rtol=0, atol=1e-6)
        assert ours.previous_timestep(t) == stock.previous_timestep(t)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"])
def test_get_variance_equals_stock(variance_type):
    ours, stock = DDPMLinearScheduler(), DDPMScheduler()
    for t in (0, 1, 10, 487, 999):
        wanted = stock._get_variance(t, variance_type=variance_type)
        torch.testing.assert_close(ours._get_variance(t, variance_type=variance_type), wanted)


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
def test_get_variance_of_learned_types_equals_stock(variance_type):
    ours, stock = (kind(variance_type=variance_type) for kind in (DDPMLinearScheduler, DDPMScheduler))
    output = torch.randn(2, 3, 4, 4, generator=seeded())
    for t in (0, 1, 10, 487, 999):
        torch.testing.assert_close(ours._get_variance(t, output), stock._get_variance(t, output))


# How to get sigma_t^2 from the value of stock's `_get_variance`.
STOCK_FORMS = {
    "fixed_small": lambda variance: variance,
    "fixed_small_log": torch.square,
    "fixed_large": lambda variance: variance,
    "fixed_large_log": torch.exp,
    "learned": lambda variance: variance,
    "learned_range": torch.exp,
}


@combinations_that_warn
@pytest.mark.parametrize("steps", [1000, 10])
@pytest.mark.parametrize("variance_type", STOCK_FORMS)
def test_variance_equals_stock(variance_type, steps):
    ours, stock = (kind(variance_type=variance_type) for kind in (DDPMLinearScheduler, DDPMScheduler))
    for scheduler in (ours, stock):
        scheduler.set_timesteps(timesteps=list(range(999, -1, -1000 // steps)))
    output = torch.rand(2, 3, 4, 4, generator=seeded()) * 2 - 1
    for t in ours.timesteps[:: steps // 10]:
        wanted = STOCK_FORMS[variance_type](stock._get_variance(t, output))
        torch.testing.assert_close(ours.variance(t, output), wanted, rtol=1e-5, atol=0)


# ---- The paper ------------------------------------------------------------------------------------------------------


def test_variance_values():
    scheduler = DDPMLinearScheduler()
    for method in (scheduler.variance, scheduler._get_variance):
        assert method(0).item() == pytest.approx(0, abs=1e-5)
        assert method(487).item() == pytest.approx(0.00979, abs=1e-5)
        assert method(999).item() == pytest.approx(0.02, abs=1e-5)
        assert method(999, variance_type="fixed_large").item() == pytest.approx(0.02, abs=1e-6)


@combinations_that_warn
@pytest.mark.parametrize("visited", [list(range(999, -1, -1)), [999, 620, 300, 7, 0]], ids=["all steps", "few steps"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
@pytest.mark.parametrize("variance_type", STOCK_FORMS)
def test_variance_equals_the_closed_form(variance_type, dtype, tolerance, visited):
    """beta_t, beta_tilde_t and the values between them, for the visited timesteps (section 3.2).

    In float32, 1 - alpha_bar at small t is good to three digits.
    """
    alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[visited]
    alpha_bar_prev = torch.cat((alpha_bar[1:], torch.ones(1, dtype=torch.float64)))
    beta = 1 - alpha_bar / alpha_bar_prev
    beta_tilde = (1 / (alpha_bar / alpha_bar_prev / beta + 1 / (1 - alpha_bar_prev))).clamp(min=1e-20)  # Bayes' rule
    v = torch.linspace(-1, 1, len(beta), dtype=torch.float64)
    expected = {
        "fixed_small": beta_tilde,
        "fixed_small_log": beta_tilde,
        "fixed_large": beta,
        "fixed_large_log": beta,
        "learned": v,
        "learned_range": beta ** ((1 + v) / 2) * beta_tilde ** ((1 - v) / 2),
    }
    scheduler = DDPMLinearScheduler(variance_type=variance_type)
    scheduler.set_timesteps(timesteps=visited)
    got = scheduler.variance(torch.tensor(visited), v.to(dtype), dtype=dtype)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected[variance_type], rtol=tolerance, atol=0)


def test_variance_has_the_shape_of_t_or_of_the_prediction():
    scheduler = DDPMLinearScheduler(variance_type="learned_range")
    t, v = torch.tensor([0, 500]).view(2, 1, 1, 1), torch.zeros(2, 3, 4, 4)
    assert scheduler.variance(t, variance_type="fixed_large").shape == (2, 1, 1, 1)
    assert scheduler.variance(t, v).shape == scheduler.variance(7, v).shape == (2, 3, 4, 4)
    assert scheduler.variance(7, variance_type="fixed_small").shape == ()


def test_moments_of_x_t_by_simulation():
    """A chain of single noising steps (eq. 2) has the moments of eq. 4."""
    scheduler = DDPMLinearScheduler(num_train_timesteps=100, beta_end=0.2)
    x_t, generator = torch.full((200_000,), 0.7), seeded()
    for t, beta in enumerate(scheduler.betas):
        x_t = (1 - beta).sqrt() * x_t + beta.sqrt() * torch.randn(x_t.shape, generator=generator)
        if t in (0, 9, 49, 99):
            mean = scheduler.add_noise(torch.tensor([0.7]), torch.tensor([0.0]), t)
            std = scheduler.add_noise(torch.tensor([0.0]), torch.tensor([1.0]), t)
            assert x_t.mean().item() == pytest.approx(mean.item(), abs=0.01)
            assert x_t.std().item() == pytest.approx(std.item(), abs=0.01)


def test_posterior_in_float64():
    """q(x_{t-1} | x_t, x_0) by Bayes' rule: precisions add up, and they weight the means."""
    scheduler = DDPMLinearScheduler()
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = (1 - betas).cumprod(0)
    x_0, x_t = torch.randn(2, 5, 1, dtype=torch.float64, generator=seeded())
    for t in (1, 2, 500, 999):
        prior = 1 / (1 - alpha_bar[t - 1])  # of x_{t-1} given x_0
        likelihood = (1 - betas[t]) / betas[t]  # of x_{t-1} given x_t
        centre = prior * alpha_bar[t - 1].sqrt() * x_0 + likelihood * x_t / (1 - betas[t]).sqrt()
        mean, variance = scheduler.posterior_mean_variance(x_0, x_t, t)
        torch.testing.assert_close(mean, centre / (prior + likelihood), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(variance.item(), (1 / (prior + likelihood)).item(), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 2e-6), (torch.float32, 1e-4)])
def test_annotated_tutorial(dtype, tolerance):
    """In float32 the coefficients are stock's. At small t, their 1 - alpha_bar ratio is good to four digits."""
    reference = {k: v.to(dtype) if v.is_floating_point() else v for k, v in annotated_diffusion().items()}
    scheduler = DDPMLinearScheduler(variance_type="fixed_large", clip_sample=False)
    torch.testing.assert_close(scheduler.betas.to(dtype), reference["betas"], rtol=0, atol=1e-7)
    torch.testing.assert_close(scheduler.alphas_cumprod.to(dtype), reference["alphas_cumprod"], rtol=1e-5, atol=1e-6)
    t = reference["timesteps"]
    x_t = scheduler.add_noise(reference["x_0"], reference["noise"], t)
    torch.testing.assert_close(x_t, reference["x_t"], rtol=0, atol=1e-5)
    loss = (reference["noise"] - reference["eps_theta"]).square().mean()
    torch.testing.assert_close(loss, reference["loss"], rtol=0, atol=1e-5)

    # The tutorial's p_sample adds noise z at t = 0 too. Without that noise, it is our step.
    for i in range(len(t)):
        eps, x_t, z = (reference[key][i : i + 1] for key in ("eps_theta", "x_t", "z"))
        sigma_t = reference["betas"][t[i]].sqrt()
        step = scheduler.step(eps, t[i], x_t, generator=seeded()).prev_sample
        our_z = torch.randn(x_t.shape, generator=seeded(), dtype=dtype) * (t[i] > 0)
        difference = (step - sigma_t * our_z) - (reference["x_prev"][i : i + 1] - sigma_t * z)
        assert difference.abs().max() < tolerance, t[i]


def test_no_noise_at_the_last_step():
    scheduler = DDPMLinearScheduler(variance_type="fixed_large")
    scheduler.set_timesteps(1000)
    x_t, eps = torch.randn(2, 4, 1, 4, 4, generator=seeded())
    a, b = (scheduler.step(eps, 0, x_t, generator=seeded(s)).prev_sample for s in (1, 2))
    c, d = (scheduler.step(eps, 1, x_t, generator=seeded(s)).prev_sample for s in (1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(c, d)


# ---- Our own promises -----------------------------------------------------------------------------------------------


@combinations_that_warn
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"rescale_betas_zero_snr": True, "clip_sample": False},
        {"beta_start": 0.0},
        {"beta_start": 0.0, "beta_end": 1e-9},
        {"beta_end": 1.0, "num_train_timesteps": 10},
        {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False},
        {"variance_type": "fixed_large_log"},
        {"variance_type": "learned"},
        {"variance_type": "learned_range", "thresholding": True},
    ],
)
def test_finite(kwargs, prediction_type):
    scheduler = DDPMLinearScheduler(prediction_type=prediction_type, **kwargs)
    for n in (1, 2, len(scheduler)):
        scheduler.set_timesteps(n)
        x = torch.randn(2, 1, 4, 4, generator=seeded())
        for t in scheduler.timesteps:
            output = torch.randn(2, 2 if "learned" in scheduler.config.variance_type else 1, 4, 4, generator=seeded(1))
            x = scheduler.step(output, t, x, generator=seeded(2)).prev_sample
            assert x.isfinite().all(), (n, t)


def test_one_generator_or_one_for_each_image():
    scheduler = DDPMLinearScheduler()
    scheduler.set_timesteps(10)
    x_t, eps = torch.randn(2, 3, 1, 4, 4, generator=seeded())
    together = scheduler.step(eps, 500, x_t, generator=[seeded(i) for i in range(3)]).prev_sample
    for i in range(3):
        alone = scheduler.step(eps[i : i + 1], 500, x_t[i : i + 1], generator=seeded(i)).prev_sample
        assert torch.equal(alone, together[i : i + 1])
    as_tuple = scheduler.step(eps, 500, x_t, generator=tuple(seeded(i) for i in range(3))).prev_sample
    assert torch.equal(as_tuple, together)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    scheduler = DDPMLinearScheduler()
    x_t, eps = torch.randn(2, 3, 1, 4, 4, generator=seeded()).to(dtype)
    half = scheduler.step(eps, 0, x_t)
    full = scheduler.step(eps.float(), 0, x_t.float())
    assert half.prev_sample.dtype == dtype
    assert torch.equal(half.prev_sample, full.prev_sample.to(dtype))
    assert scheduler.add_noise(x_t, eps, torch.tensor([1, 2, 3])).dtype == dtype


def test_timesteps_of_each_sample():
    scheduler = DDPMLinearScheduler()
    x_t, eps = torch.randn(2, 3, 1, 4, 4, generator=seeded())
    t = torch.tensor([999, 1, 0])
    generators = [seeded(i) for i in range(3)]
    together = scheduler.step(eps, t, x_t, generator=generators).prev_sample
    for i in range(3):
        alone = scheduler.step(eps[i : i + 1], t[i], x_t[i : i + 1], generator=seeded(i)).prev_sample
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-6)


def test_previous_timestep_of_any_t():
    scheduler = DDPMLinearScheduler()
    assert scheduler.previous_timestep(5) == 4
    scheduler.set_timesteps(timesteps=[900, 400, 30])
    assert [scheduler.previous_timestep(t).item() for t in (999, 900, 500, 400, 31, 30, 0)] == [
        900,
        400,
        400,
        30,
        30,
        -1,
        -1,
    ]


@pytest.mark.parametrize(
    "kwargs", [{"variance_type": "other"}, {"prediction_type": "other"}, {"timestep_spacing": "other"}]
)
def test_foreign_names_survive_construction_and_raise_where_they_are_used(kwargs):
    scheduler = DDPMLinearScheduler(**kwargs)
    x_t = torch.zeros(1, 1, 4, 4)
    with pytest.raises(ValueError, match="'other'"):
        scheduler.set_timesteps(10)
        scheduler.step(x_t, 900, x_t)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, x: s.set_timesteps(1001), "num_inference_steps=1001"),
        (lambda s, x: s.set_timesteps(0), "num_inference_steps=0"),
        (lambda s, x: s.set_timesteps(), "either"),
        (lambda s, x: s.set_timesteps(10, timesteps=[3, 1]), "either"),
        (lambda s, x: s.set_timesteps(timesteps=[1, 3]), "descending"),
        (lambda s, x: s.set_timesteps(timesteps=[1000, 3]), "from 1000 to 3"),
        (lambda s, x: s.step(x, 1000, x), "1000"),
        (lambda s, x: s.add_noise(x, x, torch.tensor([-2])), "-2"),
        (lambda s, x: s.step(torch.zeros(1, 2, 4, 4), 1, x), r"\(1, 2, 4, 4\)"),
        (lambda s, x: s.step(x[0, 0, 0], 1, x[0, 0, 0]), r"`sample` has shape \(4,\)"),
        (lambda s, x: s.step(None, 1, x), "`model_output` is of type NoneType; expected a tensor"),
        (lambda s, x: s.step(x, 1, x.long()), "`sample` is of type torch.int64"),
        (lambda s, x: s.add_noise(x, 1.0, 1), "`noise` is of type float"),
        (lambda s, x: s.get_velocity(x.numpy(), x, 1), "`sample` is of type ndarray"),
        (lambda s, x: s.predict_x_0(x, 1, "x"), "`sample` is of type str"),
        (lambda s, x: s.posterior_mean_variance([x], x, 1), "`x_0` is of type list"),
        (lambda s, x: s.variance(1000), "1000"),
        (lambda s, x: s.variance(1, variance_type="other"), "`variance_type='other'`; expected one of"),
        (lambda s, x: s.variance(1, variance_type="learned"), "`variance_type='learned'` needs `predicted_variance`"),
        (lambda s, x: s.variance(1, None, "learned_range"), "'learned_range'` needs `predicted_variance`"),
        (lambda s, x: s.step(x, 1, x, generator=3), r"`generator=3`; expected torch.Generator\(\).manual_seed"),
        (lambda s, x: s.step(x, 1, x, generator=[seeded(), 3]), r"`generator=\[<torch.*3\]`"),
        (lambda s, x: s.step(x, 1, x, generator=[seeded(), seeded()]), "list of 2; expected one for each of 1"),
        (lambda s, x: s.step(x, 1, x, generator=()), "list of 0"),
        (lambda s, x: DDPMLinearScheduler(beta_schedule="other"), "'other'"),
        (lambda s, x: DDPMLinearScheduler(beta_end=2.0).set_timesteps(10), "run from 0.0001 to 2"),
        (lambda s, x: DDPMLinearScheduler(trained_betas=[0.1, 0.2]).set_timesteps(10), "has 2 entries"),
        (lambda s, x: DDPMLinearScheduler(steps_offset=1).set_timesteps(1000), "from 1000 to 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(DDPMLinearScheduler(), torch.zeros(1, 1, 4, 4))


BAD_TIMESTEPS = (-2, 1000, 10**30, 2.5, 3.0, math.nan, "x", None, True, [1, "x"], torch.tensor([2.0]))


@pytest.mark.parametrize("t", BAD_TIMESTEPS, ids=repr)
@pytest.mark.parametrize(
    "call",
    [
        lambda s, t, x: s.step(x, t, x),
        lambda s, t, x: s.add_noise(x, x, t),
        lambda s, t, x: s.get_velocity(x, x, t),
        lambda s, t, x: s.predict_x_0(x, t, x),
        lambda s, t, x: s.posterior_mean_variance(x, x, t),
        lambda s, t, x: s.previous_timestep(t),
        lambda s, t, x: s.variance(t),
        lambda s, t, x: s.set_timesteps(timesteps=t if isinstance(t, list) or torch.is_tensor(t) else [t]),
    ],
)
def test_bad_timesteps_are_refused(call, t):
    with pytest.raises(ValueError, match=r"(?i)timestep") as error:
        call(DDPMLinearScheduler(), t, torch.zeros(2, 1, 4, 4))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("t", [-1, torch.tensor(-1), torch.tensor([5, -1])])
def test_the_reverse_process_refuses_the_clean_data(t):
    scheduler, x = DDPMLinearScheduler(), torch.ones(2, 1, 4, 4)
    for call in (
        lambda: scheduler.step(x, t, x),
        lambda: scheduler.predict_x_0(x, t, x),
        lambda: scheduler.posterior_mean_variance(x, x, t),
        lambda: scheduler.previous_timestep(t),
        lambda: scheduler.variance(t),
    ):
        with pytest.raises(ValueError, match=r"-1.* is outside \[0, 1000\)"):
            call()
    assert torch.equal(scheduler.add_noise(x, x, t)[-1], x[-1])  # q(x_t | x_0) accepts t = -1


@pytest.mark.parametrize("call", ["step", "add_noise", "predict_x_0"])
def test_timesteps_for_another_number_of_samples_are_refused(call):
    x, t = torch.zeros(2, 1, 4, 4), torch.tensor([3, 4, 5])
    with pytest.raises(ValueError, match="There are 3 timesteps; expected one, or one for each of 2 samples"):
        getattr(DDPMLinearScheduler(), call)(*((x, x, t) if call == "add_noise" else (x, t, x)))


@pytest.mark.parametrize("n", [2.5, 2.0, math.nan, "5", True, -1, [5], torch.tensor(2.0)], ids=repr)
def test_bad_numbers_of_steps_are_refused(n):
    with pytest.raises(ValueError, match=r"`num_inference_steps=.*expected a whole number, 1 to"):
        DDPMLinearScheduler().set_timesteps(n)


@pytest.mark.parametrize("timesteps", [[], 5, [[3, 1]]])
def test_bad_lists_of_timesteps_are_refused(timesteps):
    with pytest.raises(ValueError, match=r"`timesteps=.*; expected"):
        DDPMLinearScheduler().set_timesteps(timesteps=timesteps)


@pytest.mark.parametrize("kind", [np.int64, np.uint16, torch.tensor, lambda n: torch.tensor([n], dtype=torch.uint8)])
def test_whole_numbers_of_every_kind(kind):
    scheduler, x = DDPMLinearScheduler(), torch.ones(1, 1, 4, 4)
    scheduler.set_timesteps(kind(7))
    assert scheduler.num_inference_steps == 7
    assert torch.equal(scheduler.step(x, kind(9), x, seeded()).prev_sample, scheduler.step(x, 9, x, seeded())[0])
    scheduler.set_timesteps(timesteps=np.array([8, 2]))
    assert scheduler.timesteps.tolist() == [8, 2]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_train_timesteps", "many"),
        ("num_train_timesteps", 10.5),
        ("num_train_timesteps", 0),
        ("num_train_timesteps", None),
        ("beta_start", None),
        ("beta_end", "0.02"),
        ("beta_end", True),
        ("trained_betas", "all"),
        ("trained_betas", [0.1, None]),
        ("beta_schedule", ["linear"]),
    ],
)
def test_values_without_a_table_are_refused(key, value):
    with pytest.raises(ValueError, match=rf"`{key}=.*expected"):
        DDPMLinearScheduler(**{key: value})


@pytest.mark.parametrize("content", ["[]", '"google/ddpm-cat-256"', "5"])
def test_a_configuration_that_is_not_a_dictionary_is_refused(tmp_path, content):
    (tmp_path / "scheduler_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"The scheduler_config.json of .* is .*; expected keys and values"):
        DDPMLinearScheduler.from_pretrained(tmp_path)


def test_keys_that_the_table_does_not_need_may_have_any_value():
    DDPMLinearScheduler(trained_betas=[0.1], num_train_timesteps=1, beta_start=None, beta_schedule="other")
    DDPMLinearScheduler(beta_schedule="squaredcos_cap_v2", beta_end=None, variance_type=None).set_timesteps(10)


def test_config_is_the_same_in_memory_and_after_saving(tmp_path):
    from diffusers import DDIMScheduler

    scheduler = DDPMLinearScheduler()
    scheduler.save_pretrained(tmp_path)
    loaded = DDPMLinearScheduler.from_pretrained(tmp_path)
    a, b = DDIMScheduler.from_config(scheduler.config), DDIMScheduler.from_config(loaded.config)
    assert {k: v for k, v in a.config.items() if k[0] != "_"} == {k: v for k, v in b.config.items() if k[0] != "_"}
    assert torch.equal(scheduler.betas, loaded.betas)

    # diffusers' own scheduler tests `test_from_pretrained` and `test_compatibles` expect this.
    expected = dict(scheduler.config)
    del expected["_use_default_values"]
    assert loaded.config == expected
    assert DDPMLinearScheduler.from_pretrained(tmp_path, return_unused_kwargs=True)[0].config == expected
    assert DDPMLinearScheduler.from_config(a.config).config.items() >= scheduler.config.items()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_and_copies(protocol):
    scheduler, x = DDPMLinearScheduler(), torch.ones(1, 1, 4, 4)
    scheduler.set_timesteps(10)
    wanted = scheduler.step(x, 500, x, seeded()).prev_sample
    for again in (pickle.loads(pickle.dumps(scheduler, protocol)), copy.deepcopy(scheduler)):
        assert again.config == scheduler.config
        assert torch.equal(again.step(x, 500, x, seeded()).prev_sample, wanted)


def test_variance_of_the_whole_chain():
    """With the exact eps of N(0, 1) data, each x_t under fixed_large is N(0, 1) up to an error of order beta."""
    scheduler = DDPMLinearScheduler(variance_type="fixed_large", clip_sample=False)
    scheduler.set_timesteps(1000)
    x, generator = torch.randn(1, 1, 64, 64, generator=seeded()), seeded(1)
    for t in scheduler.timesteps:
        a = scheduler.alphas_cumprod[t]
        x = scheduler.step((1 - a).sqrt() * x, t, x, generator=generator).prev_sample
    assert x.std().item() == pytest.approx(1, abs=0.05)
    assert math.isfinite(x.mean().item())


# ---- Warnings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        ({"variance_type": "fixed_large"}, "fewer than 100 steps.*fixed_small.*DDIMScheduler"),
        ({"rescale_betas_zero_snr": True}, "v_prediction"),
    ],
)
def test_bad_combinations_warn_once(config, remedy):
    scheduler = DDPMLinearScheduler(**config)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for steps in (50, 20, 50):
            scheduler.set_timesteps(steps)
    assert len(caught) == 1
    assert re.search(remedy, str(caught[0].message))
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({}, 10),
        ({"variance_type": "fixed_large"}, 100),
        ({"variance_type": "fixed_large", "num_train_timesteps": 20}, 20),
        ({"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, 10),
    ],
)
def test_good_combinations_do_not_warn(config, steps):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DDPMLinearScheduler(**config).set_timesteps(steps)
