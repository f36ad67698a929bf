"""The folders that ship: small, offline, deterministic, and a judge that can be trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models import sampling
from models.assemble import read_atlas
from models.evaluate import draw_prompts, examine_judge
from models.scenes import SUBJECTS, is_held_out
from models.scoring import JUDGE, ClipScorer, Judge

MEGABYTE = 1_000_000


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return sampling.load_pipeline()


@pytest.fixture(scope="module")
def scorer() -> ClipScorer:
    return ClipScorer.load()


def test_the_model_stays_within_25_megabytes_and_the_judge_within_5() -> None:
    assert bytes_in(sampling.SMALL) <= 25 * MEGABYTE
    assert bytes_in(JUDGE) <= 5 * MEGABYTE


def test_no_configuration_names_a_folder_of_the_training_machine() -> None:
    for path in sampling.SMALL.rglob("*.json"):
        if "config" in path.name or "index" in path.name:
            assert "_name_or_path" not in json.loads(path.read_text()), path


def test_the_pipeline_draws_the_same_picture_for_the_same_seed(pipeline: Any) -> None:
    first, second = (
        pipeline(
            "a banana on a red background",
            num_inference_steps=4,
            guidance_scale=sampling.GUIDANCE_SCALE,
            generator=torch.Generator().manual_seed(1),
        ).images[0]
        for _ in range(2)
    )
    assert first.size == (64, 64)
    assert first.tobytes() == second.tobytes()


def test_the_batched_sampler_takes_the_pipelines_steps(pipeline: Any) -> None:
    prompts = ["a banana on a red background", "a small car in the snow"]
    run = sampling.denoise(pipeline, prompts, sampling.draw_noise([3, 4]), keep=[20])
    resumed = sampling.denoise(pipeline, prompts, run.states[20], start=20)
    assert torch.equal(run.latents, resumed.latents)
    expected = pipeline(
        prompts,
        num_inference_steps=sampling.NUM_STEPS,
        guidance_scale=sampling.GUIDANCE_SCALE,
        latents=sampling.draw_noise([3, 4]),
        output_type="latent",
    ).images
    # bfloat16 in the sampler, float32 in the pipeline
    assert (run.latents - expected).abs().mean() < 0.1


def test_prompts_embed_to_unit_length(scorer: ClipScorer) -> None:
    embeddings = scorer.embed_texts(["a banana", "a small car in the snow, on the left"])
    assert embeddings.shape == (2, 128)
    assert torch.allclose(embeddings.norm(dim=-1), torch.ones(2), atol=1e-5)


def test_prompts_are_the_more_alike_the_fewer_words_differ(scorer: ClipScorer) -> None:
    prompts = [
        "a large flat banana on a red background, on the left",
        "a large glossy banana on a red background, on the left",
        "a large flat robot on a red background, on the left",
        "a small glossy robot in the snow, at the top",
    ]
    embeddings = scorer.embed_texts(prompts)
    similarity = (embeddings @ embeddings[0]).tolist()
    assert similarity == sorted(similarity, reverse=True)
    assert similarity[1] > 0.7 > similarity[3]


def test_the_judge_reads_fresh_pictures() -> None:
    accuracy = examine_judge(Judge.load(), count=200)
    assert min(accuracy.values()) >= 0.95


def test_the_atlas_holds_every_subject_in_both_styles() -> None:
    atlas = read_atlas(JUDGE / "sprites.png")
    assert len(atlas) == 2 * len(SUBJECTS)
    assert all(sprite[..., 3].max() == 255 for sprite in atlas.values())


def test_half_of_the_evaluations_prompts_name_held_out_pairs() -> None:
    scenes = draw_prompts(40)
    assert scenes == draw_prompts(40)
    assert sum(is_held_out(scene.subject, scene.background) for scene in scenes) == 20
