# mypy: disable-error-code="no-untyped-call"
# diffusers' constructors carry no annotations.

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from tests.tiny_pipeline import CLIP_PROJECTION_DIM, EMBED_DIM, NUM_TOKENS, build_tiny_pipeline
from workers.denoising.errors import UnsupportedModel, UnsupportedScheduler
from workers.denoising.families import loading
from workers.denoising.families.family import Family
from workers.denoising.families.folder import fingerprint

PROMPTS = ["a red bus", "two cats on a mat, oil painting", "", "漢字 é " * 50]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_pipeline(tmp_path_factory.mktemp("clip") / "model", with_clip=True)


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A model folder that the test may change."""
    return Path(shutil.copytree(folders["ddim"], tmp_path / "model"))


def test_a_loaded_model_tells_the_shape_of_its_latents(family: Family) -> None:
    assert family.latent_shape(24, 16) == (4, 12, 8)
    assert family.dtype is torch.float32


def test_conditioning_equals_the_pipelines(family: Family, folders: dict[str, Path]) -> None:
    pipeline: Any = diffusers.StableDiffusionPipeline
    pipeline = pipeline.from_pretrained(folders["ddim"], local_files_only=True)
    encodings = family.encode(PROMPTS, ["grey"] * len(PROMPTS))
    for prompt, encoding in zip(PROMPTS, encodings, strict=True):
        theirs = pipeline.encode_prompt(prompt, "cpu", 1, True, "grey")
        conditioning = encoding.conditioning
        ours = (conditioning.prompt["prompt_embeds"], conditioning.negative_prompt["prompt_embeds"])
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.shape == (NUM_TOKENS, EMBED_DIM)
            torch.testing.assert_close(mine, other[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("with_clip", [False, True])
def test_retrieval_vectors_have_unit_length_and_the_embedders_dimension(
    family: Family, clip_folder: Path, with_clip: bool
) -> None:
    model = loading.load(clip_folder) if with_clip else family
    assert model.embedder.dim == (CLIP_PROJECTION_DIM if with_clip else EMBED_DIM)
    vectors = model.embedding(PROMPTS)
    assert vectors.shape == (len(PROMPTS), model.embedder.dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    encodings = model.encode(PROMPTS, [""] * len(PROMPTS))
    np.testing.assert_array_equal(np.stack([each.embedding for each in encodings]), vectors)
    assert vectors[0] @ vectors[1] < 0.9999


def test_embedders_of_other_weights_have_other_ids(
    family: Family, clip_folder: Path, tmp_path: Path
) -> None:
    retrained = loading.load(build_tiny_pipeline(tmp_path / "other", seed=1))
    with_clip = loading.load(clip_folder)
    ids = {family.embedder.id, retrained.embedder.id, with_clip.embedder.id}
    assert len(ids) == 3


def test_the_revision_follows_files_and_not_notes(copy: Path, family: Family) -> None:
    assert fingerprint(copy) == family.revision
    (copy / "README.md").write_text("a note")
    (copy / ".lock").write_text("")
    assert fingerprint(copy) == family.revision
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert fingerprint(copy) != family.revision


def test_defaults_are_the_trained_size_and_stable_diffusions(family: Family) -> None:
    spec = family.spec
    assert (spec.unit, spec.height, spec.width) == (2, 16, 16)
    assert (spec.size_min, spec.size_max) == (8, 32)
    assert (spec.num_inference_steps, spec.guidance_scale) == (50, 7.5)


def test_nirvana_json_overrides_them(copy: Path) -> None:
    (copy / "nirvana.json").write_text(json.dumps({"guidance_scale": 4, "height": 24}))
    spec = loading.load(copy).spec
    assert (spec.guidance_scale, spec.height, spec.width) == (4, 24, 16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"guidance": 4}, "has 'guidance'; allowed: height"),
        ({"height": "24"}, "height is '24', not a number"),
        ([24, 16], "is no JSON object"),
        ({"height": 17}, "17 pixels"),
        ({"height": 64}, "64 pixels"),
    ],
)
def test_a_wrong_nirvana_json_is_refused(copy: Path, content: Any, message: str) -> None:
    (copy / "nirvana.json").write_text(json.dumps(content))
    with pytest.raises(UnsupportedModel, match=message):
        loading.load(copy)


def test_what_is_no_model_is_refused_in_one_line(copy: Path, tmp_path: Path) -> None:
    (copy / "unet" / "config.json").unlink()
    for path in (tmp_path / "nothing", tmp_path, copy):
        with pytest.raises(UnsupportedModel) as refused:
            loading.load(path)
        assert str(path) in str(refused.value)


def test_a_folder_of_another_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(UnsupportedModel, match="FluxPipeline"):
        loading.load(tmp_path)


def test_an_unsupported_scheduler_is_refused_or_replaced(tmp_path: Path) -> None:
    pndm = diffusers.PNDMScheduler(steps_offset=1)
    folder = build_tiny_pipeline(tmp_path / "pndm", scheduler=pndm)
    with pytest.raises(UnsupportedScheduler, match=r"PNDMScheduler is refused.*DDIM"):
        loading.load(folder)
    replaced = loading.load(folder, scheduler="DDIMScheduler").scheduler
    assert isinstance(replaced, diffusers.DDIMScheduler)
    with pytest.raises(UnsupportedScheduler, match="HeunDiscreteScheduler"):
        loading.load(folder, scheduler="HeunDiscreteScheduler")


def test_an_encoding_keeps_none_of_those_that_were_made_with_it(family: Family) -> None:
    """A job holds its own until it ends; those of a large model are megabytes each."""
    encoding = family.encode(PROMPTS, PROMPTS)[0]
    for rows in (encoding.conditioning.prompt, encoding.conditioning.negative_prompt):
        assert [each.untyped_storage().nbytes() for each in rows.values()] == [
            each.nbytes for each in rows.values()
        ]
    assert encoding.embedding.flags.owndata
