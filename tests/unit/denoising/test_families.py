"""Loading and encoding of each family; test_parity.py has their denoising."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny_families import PROJECTION_DIM, T5_DIM, tiny_sd3, tiny_sdxl
from tests.tiny_pipeline import EMBED_DIM, NUM_TOKENS
from tests.unit.denoising.fakes import TIMEOUT_S, request_for, run_alone
from tests.unit.denoising.pairs import FAMILIES, FLOW_SCHEDULERS, TinyModel
from workers.denoising.engine import Engine
from workers.denoising.errors import InvalidRequest, UnsupportedModel, UnsupportedScheduler
from workers.denoising.families import loading
from workers.denoising.families.description import describe, weights_bytes
from workers.denoising.families.family import Encoding, Family
from workers.denoising.families.flux import image_ids, pack, unpack
from workers.denoising.modules import memory_bytes

PROMPTS = ["a red bus", "two cats on a mat, oil painting", "", "\u6f22\u5b57 \u00e9 " * 50]


def save(pipeline: Any, folder: Path) -> Path:
    pipeline.save_pretrained(folder)
    return folder


def load_pipeline(folder: Path, **parts: Any) -> Any:
    pipeline: Any = diffusers.DiffusionPipeline
    pipeline = pipeline.from_pretrained(folder, local_files_only=True, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


# Loading


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_says_what_it_is(tiny_models: dict[str, TinyModel], name: str) -> None:
    family = tiny_models[name].family
    expected: dict[str, tuple[int, int, int, float, int]] = {
        # unit, trained size, steps, guidance, retrieval
        "sd": (2, 16, 50, 7.5, EMBED_DIM),
        "sdxl": (2, 16, 50, 5.0, PROJECTION_DIM),
        "sd3": (4, 16, 28, 7.0, PROJECTION_DIM),
        "flux": (4, 256, 28, 3.5, EMBED_DIM),
        "flux schnell": (4, 256, 4, 0.0, EMBED_DIM),
    }
    spec = family.spec
    found = (spec.unit, spec.height, spec.num_inference_steps, spec.guidance_scale)
    assert (*found, family.embedder.dim) == expected[name]
    assert family.latent_shape(24, 16) == (4, 12, 8)
    assert family.dtype is torch.float32


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_says_the_same_before_it_is_loaded(
    tiny_models: dict[str, TinyModel], name: str
) -> None:
    folder, family = tiny_models[name].folder, tiny_models[name].family
    assert describe(folder) == family.spec
    assert 0.9 < memory_bytes(family) / weights_bytes(folder) < 1.1  # no part is overlooked


def test_a_folder_of_another_family_is_refused_naming_those_supported(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(UnsupportedModel) as refused:
        loading.load(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path} is a KandinskyPipeline; supported: StableDiffusionPipeline, "
        "StableDiffusionXLPipeline, StableDiffusion3Pipeline, FluxPipeline"
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_scheduler_made_for_other_models_is_refused(
    tiny_models: dict[str, TinyModel], name: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_models[name].folder, tmp_path / "model"))
    is_flow_matching = FAMILIES[name] is not FAMILIES["sd"]
    wrong = "DDIMScheduler" if is_flow_matching else "FlowMatchEulerDiscreteScheduler"
    kind = "flow matching" if is_flow_matching else "diffusion"
    with pytest.raises(UnsupportedScheduler, match=f"{wrong} is refused.*for a {kind} model"):
        loading.load(folder, scheduler=wrong)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_flow_matching_models_take_a_multistep_solver_instead(
    tiny_models: dict[str, TinyModel], name: str
) -> None:
    family = loading.load(tiny_models[name].folder, scheduler="UniPCMultistepScheduler")
    latents = run_alone(family, request_for(family.encode(["a"], [""])[0]))
    assert latents.isfinite().all()


# Retrieval vectors


@pytest.mark.parametrize("name", FAMILIES)
def test_retrieval_vectors_are_those_of_the_encoding(
    tiny_models: dict[str, TinyModel], name: str
) -> None:
    family = tiny_models[name].family
    vectors = family.embedding(PROMPTS)
    assert vectors.shape == (len(PROMPTS), family.embedder.dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    encodings = family.encode(PROMPTS, [""] * len(PROMPTS))
    encoded = np.stack([each.embedding for each in encodings])
    np.testing.assert_allclose(encoded, vectors, atol=1e-6)
    assert vectors[0] @ vectors[1] < 0.9999


def test_the_embedders_id_says_which_vectors_they_are(tiny_models: dict[str, TinyModel]) -> None:
    kinds = {name: model.family.embedder.id.split(":")[0] for name, model in tiny_models.items()}
    assert kinds == {
        "sd": "text-encoder-pooled",
        "sdxl": "text-encoder-projected",
        "sd3": "text-encoder-projected",
        "flux": "text-encoder-pooled",
        "flux schnell": "text-encoder-pooled",
    }


# SDXL


def encode(family: Family, negative_prompts: list[str]) -> list[Encoding]:
    return family.encode(PROMPTS[: len(negative_prompts)], negative_prompts)


@pytest.mark.parametrize("negative_prompts", [["", ""], ["grey", ""], ["grey", "blurry"]])
def test_sdxl_is_conditioned_as_by_its_pipeline(
    tiny_models: dict[str, TinyModel], negative_prompts: list[str]
) -> None:
    model = tiny_models["sdxl"]
    encodings = encode(model.family, negative_prompts)
    for prompt, negative, encoding in zip(PROMPTS, negative_prompts, encodings, strict=False):
        theirs = model.pipeline.encode_prompt(prompt, negative_prompt=negative or None)
        names = ("prompt_embeds", "pooled_prompt_embeds")
        for index, name in enumerate(names):
            close(encoding.conditioning.prompt[name], theirs[2 * index][0])
            close(encoding.conditioning.negative_prompt[name], theirs[2 * index + 1][0])
    shape = encodings[0].conditioning.prompt["prompt_embeds"].shape
    assert shape == (NUM_TOKENS, 2 * EMBED_DIM)


def test_sdxl_encodes_empty_negative_prompts_where_it_was_not_trained_on_zeros(
    tmp_path: Path,
) -> None:
    folder = save(tiny_sdxl(force_zeros_for_empty_prompt=False), tmp_path / "model")
    encoding = encode(loading.load(folder), [""])[0]
    assert encoding.conditioning.negative_prompt["prompt_embeds"].abs().max() > 0
    latents = run_alone(loading.load(folder), request_for(encoding, guidance_scale=5.0))
    theirs = load_pipeline(folder)(
        PROMPTS[0],
        height=16,
        width=16,
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
    ).images[0]
    torch.testing.assert_close(latents, theirs, atol=1e-4, rtol=0)


def test_sdxl_is_told_the_size_in_both_rows(tiny_models: dict[str, TinyModel]) -> None:
    family = tiny_models["sdxl"].family
    given = encode(family, [""])[0].conditioning
    told = family.condition(given, height=24, width=16, guidance_scale=5.0)
    for rows in (told.prompt, told.negative_prompt):
        assert rows["time_ids"].tolist() == [24, 16, 0, 0, 24, 16]
    assert "time_ids" not in given.prompt


def test_sdxls_vae_is_wider_than_half_precision(tmp_path: Path) -> None:
    """On a CPU; not measured on a GPU."""
    family: Any = loading.load(save(tiny_sdxl(), tmp_path / "model"), dtype=torch.float16)
    assert (family.dtype, family.vae.dtype) == (torch.float16, torch.float32)
    assert family.decode(torch.zeros(2, 4, 8, 8, dtype=torch.float16)).shape == (2, 16, 16, 3)


# Stable Diffusion 3


def sd3_encodings(folder: Path) -> tuple[Family, Encoding]:
    family = loading.load(folder)
    with torch.inference_mode():  # as the engine: with gradients, attention rounds otherwise
        return family, family.encode([PROMPTS[0]], ["grey"])[0]


@pytest.mark.parametrize("with_t5", [True, False])
def test_sd3_is_conditioned_as_by_its_pipeline(tmp_path: Path, with_t5: bool) -> None:
    absent: dict[str, None] = {} if with_t5 else {"text_encoder_3": None, "tokenizer_3": None}
    folder = save(tiny_sd3(**absent), tmp_path / "model")
    pipeline = load_pipeline(folder, **absent)
    _, encoding = sd3_encodings(folder)
    with torch.inference_mode():
        theirs = pipeline.encode_prompt(PROMPTS[0], None, None, negative_prompt="grey")
    for index, name in enumerate(("prompt_embeds", "pooled_prompt_embeds")):
        close(encoding.conditioning.prompt[name], theirs[2 * index][0])
        close(encoding.conditioning.negative_prompt[name], theirs[2 * index + 1][0])
    assert encoding.conditioning.prompt["prompt_embeds"].shape == (NUM_TOKENS + 256, T5_DIM)


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_sd3_has_zeros_where_a_clip_encoder_is_absent(tmp_path: Path, part: str) -> None:
    folder = save(tiny_sd3(), tmp_path / "model")
    _, whole = sd3_encodings(folder)
    shutil.rmtree(folder / part)  # and model_index.json still names it
    family, encoding = sd3_encodings(folder)
    ours, theirs = encoding.conditioning.prompt, whole.conditioning.prompt
    gone = slice(0, EMBED_DIM) if part == "text_encoder" else slice(EMBED_DIM, None)
    kept = slice(EMBED_DIM, None) if part == "text_encoder" else slice(0, EMBED_DIM)
    for name in ours:
        assert ours[name].shape == theirs[name].shape
    close(ours["pooled_prompt_embeds"][kept], theirs["pooled_prompt_embeds"][kept])
    assert not ours["pooled_prompt_embeds"][gone].any()
    clip_states = ours["prompt_embeds"][:NUM_TOKENS]
    assert not clip_states[:, gone][:, :PROJECTION_DIM].any()
    assert run_alone(family, request_for(encoding, guidance_scale=4.0)).isfinite().all()


def test_sd3_without_any_clip_encoder_is_refused(tmp_path: Path) -> None:
    folder = save(tiny_sd3(), tmp_path / "model")
    for part in ("text_encoder", "text_encoder_2"):
        shutil.rmtree(folder / part)
    with pytest.raises(UnsupportedModel, match="no CLIP text encoder, which retrieval needs"):
        loading.load(folder)


# Timesteps that depend on the size


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_larger_images_get_more_steps_at_high_noise_unless_the_shift_is_static(
    tiny_models: dict[str, TinyModel], name: str
) -> None:
    family = tiny_models[name].with_scheduler("flow euler dynamic").family
    small, large = (family.schedule(8, side, side)["mu"] for side in (16, 64))
    assert small < large
    # 16 tokens and 256, on the line from (256, .3) to (1024, 1.2)
    assert small == pytest.approx(0.3 - 240 * 0.9 / 768)
    assert large == pytest.approx(0.3)
    assert "mu" not in tiny_models[name].with_scheduler("flow euler").family.schedule(8, 16, 16)


@pytest.mark.parametrize("name", FLOW_SCHEDULERS)
def test_jobs_of_two_sizes_do_not_share_a_schedule(
    tiny_models: dict[str, TinyModel], name: str
) -> None:
    family = tiny_models["flux"].with_scheduler(name).family
    encoding = family.encode(["a"], [""])[0]
    with Engine(family) as engine:
        futures = [
            engine.denoise(request_for(encoding, height=size, width=size)) for size in (16, 32, 16)
        ]
        one, _, again = (future.result(TIMEOUT_S).final_latents for future in futures)
    assert one is not None
    assert again is not None
    close(one, again)


# Flux


@pytest.mark.parametrize("name", ["flux", "flux schnell"])
def test_flux_is_conditioned_as_by_its_pipeline(
    tiny_models: dict[str, TinyModel], name: str
) -> None:
    model = tiny_models[name]
    with torch.inference_mode():
        encoding = encode(model.family, [""])[0]
        prompt_embeds, pooled, text_ids = model.pipeline.encode_prompt(PROMPTS[0])
    close(encoding.conditioning.prompt["prompt_embeds"], prompt_embeds[0])
    close(encoding.conditioning.prompt["pooled_prompt_embeds"], pooled[0])
    assert not text_ids.any()
    told = model.family.condition(encoding.conditioning, height=16, width=16, guidance_scale=2.5)
    assert set(told.prompt) - set(encoding.conditioning.prompt) == (
        {"guidance"} if name == "flux" else set()
    )
    assert told.negative_prompt == {}


def test_flux_refuses_a_negative_prompt_and_its_neighbours_go_on(
    tiny_models: dict[str, TinyModel],
) -> None:
    with Engine(tiny_models["flux"].family) as engine:
        futures = [engine.encode("a", negative) for negative in ("", "grey", "")]
        with pytest.raises(InvalidRequest, match="Flux takes no negative prompt"):
            futures[1].result(TIMEOUT_S)
        assert all(futures[n].result(TIMEOUT_S).embedding is not None for n in (0, 2))


def test_packing_is_the_pipelines_and_can_be_undone() -> None:
    latents = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(1))
    pipeline: Any = diffusers.FluxPipeline
    theirs = pipeline._pack_latents(latents, 2, 4, 6, 8)
    assert torch.equal(pack(latents), theirs)
    assert torch.equal(unpack(theirs, 3, 4), latents)
    ids = pipeline._prepare_latent_image_ids(1, 3, 4, "cpu", torch.float32)
    assert torch.equal(image_ids(3, 4, device=torch.device("cpu")).float(), ids)


# What goes wrong


def _break_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("[]")


def _break_scheduler(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    contradiction = {"use_karras_sigmas": True, "use_exponential_sigmas": True}
    path.write_text(json.dumps({**json.loads(path.read_text()), **contradiction}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_break_index, "is no JSON object"),
        (_break_scheduler, "cannot be loaded.*Only one of"),
        (lambda folder: shutil.rmtree(folder / "vae"), "cannot be loaded"),
        (lambda folder: shutil.rmtree(folder / "text_encoder_2"), "cannot be loaded"),
    ],
)
def test_a_broken_folder_is_refused(
    tiny_models: dict[str, TinyModel],
    tmp_path: Path,
    harm: Callable[[Path], None],
    message: str,
) -> None:
    folder = Path(shutil.copytree(tiny_models["flux"].folder, tmp_path / "model"))
    harm(folder)
    with pytest.raises(UnsupportedModel, match=rf"(?s){message}"):
        loading.load(folder)
