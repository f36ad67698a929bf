"""Which schedulers are served, and how the others are refused."""

# mypy: disable-error-code="no-untyped-call"
# diffusers' constructors carry no annotations.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest

from tests.tiny_pipeline import BETAS, tiny_ddim_scheduler
from tests.unit.denoising.pairs import DIFFUSION_SCHEDULERS, FLOW, FLOW_SCHEDULERS, SCHEDULERS
from workers.denoising.errors import UnsupportedScheduler
from workers.denoising.schedulers import (
    Resume,
    check_supported,
    replacement,
    resumes,
    scheduler_fingerprint,
)

DIFFUSION_NAMES = (
    "supported: DDIMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, "
    "DPMSolverMultistepScheduler, UniPCMultistepScheduler"
)
FLOW_NAMES = (
    "supported: DPMSolverMultistepScheduler, UniPCMultistepScheduler, "
    "FlowMatchEulerDiscreteScheduler"
)
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: diffusers.PNDMScheduler(), "PNDMScheduler is refused.*use DDIMScheduler"),
    (lambda: diffusers.HeunDiscreteScheduler(), "Heun.* two predictions.*use EulerDiscrete"),
    (lambda: diffusers.DEISMultistepScheduler(), "DEIS.*not known"),
    (lambda: diffusers.FlowMatchEulerDiscreteScheduler(), "does not solve for a diffusion model"),
    (
        lambda: diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
        r"algorithm_type is sde-dpmsolver\+\+, not dpmsolver\+\+",
    ),
    (lambda: diffusers.DPMSolverMultistepScheduler(variance_type="learned"), "variance_type"),
    (lambda: diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True), "go together"),
    (
        lambda: diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction"),
        "go together",
    ),
    (lambda: diffusers.UniPCMultistepScheduler(use_dynamic_shifting=True), "needs use_flow_sigmas"),
    (
        lambda: diffusers.UniPCMultistepScheduler(solver_p=tiny_ddim_scheduler()),
        "solver_p",
    ),
    (lambda: diffusers.UniPCMultistepScheduler(predict_x0=False), "gives NaN"),
    (
        lambda: diffusers.EulerAncestralDiscreteScheduler(prediction_type="sample"),
        "fails at its first steps: NotImplementedError",
    ),
]
REFUSED_FOR_FLOW: list[tuple[Callable[[], Any], str]] = [
    (tiny_ddim_scheduler, "DDIMScheduler is refused.*does not solve for a flow matching model"),
    (lambda: diffusers.DPMSolverMultistepScheduler(), "does not solve for a flow matching model"),
    (lambda: diffusers.FlowMatchHeunDiscreteScheduler(), "use FlowMatchEulerDiscreteScheduler"),
    (
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        "stochastic_sampling is not supported",
    ),
    (
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        "invert_sigmas is not supported",
    ),
]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_supported_schedulers_say_how_they_resume(name: str) -> None:
    resume = check_supported(SCHEDULERS[name](), is_flow_matching=name in FLOW_SCHEDULERS)
    is_multistep = "dpm++" in name or "unipc" in name
    assert resume is (Resume.WARM_RESTART if is_multistep else Resume.EXACT)


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_others_are_refused_naming_those_for_diffusion(
    build: Callable[[], Any], message: str
) -> None:
    with pytest.raises(UnsupportedScheduler, match=message) as refused:
        check_supported(build(), is_flow_matching=False)
    assert DIFFUSION_NAMES in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("build", "message"), REFUSED_FOR_FLOW)
def test_others_are_refused_naming_those_for_flow_matching(
    build: Callable[[], Any], message: str
) -> None:
    with pytest.raises(UnsupportedScheduler, match=message) as refused:
        check_supported(build(), is_flow_matching=True)
    assert FLOW_NAMES in str(refused.value)


@pytest.mark.parametrize(
    ("num_inference_steps", "k", "is_close"),
    [
        (19, 2, False),
        (20, 1, False),
        (20, 2, True),
        (20, 10, True),
        (20, 11, False),
        (49, 25, False),
        (50, 1, True),
        (50, 49, True),
    ],
)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_multistep_solvers_keep_states_only_where_a_warm_restart_ends_close(
    name: str, num_inference_steps: int, k: int, is_close: bool
) -> None:
    is_exact = "dpm++" not in name and "unipc" not in name
    assert resumes(SCHEDULERS[name](), num_inference_steps, k=k) is (is_exact or is_close)


def test_checking_leaves_the_template_as_it_was() -> None:
    scheduler: Any = diffusers.DPMSolverMultistepScheduler(**FLOW, use_dynamic_shifting=True)
    before = scheduler_fingerprint(scheduler)
    check_supported(scheduler, is_flow_matching=True)
    assert scheduler.step_index is None
    assert scheduler.config.flow_shift == 1.0
    assert scheduler_fingerprint(scheduler) == before


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_replacement_keeps_the_configuration(name: str) -> None:
    flow: Any = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    replaced = replacement(name, flow, is_flow_matching=True)
    assert (replaced.config.flow_shift, replaced.config.use_dynamic_shifting) == (3.0, True)
    assert check_supported(replaced, is_flow_matching=True) is Resume.WARM_RESTART
    diffusion = replacement(name, tiny_ddim_scheduler(), is_flow_matching=False)
    assert diffusion.config.beta_end == BETAS["beta_end"]
    assert check_supported(diffusion, is_flow_matching=False) is Resume.WARM_RESTART


def test_an_unknown_replacement_is_refused() -> None:
    with pytest.raises(UnsupportedScheduler, match=f"Nonesuch is refused.*{DIFFUSION_NAMES}"):
        replacement("Nonesuch", tiny_ddim_scheduler(), is_flow_matching=False)


def test_the_fingerprint_follows_the_configuration() -> None:
    same, other = tiny_ddim_scheduler(), tiny_ddim_scheduler(timestep_spacing="trailing")
    assert scheduler_fingerprint(same) == scheduler_fingerprint(DIFFUSION_SCHEDULERS["ddim"]())
    assert scheduler_fingerprint(same) != scheduler_fingerprint(other)
    assert scheduler_fingerprint(same).startswith("DDIMScheduler:")
