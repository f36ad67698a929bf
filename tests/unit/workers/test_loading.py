"""Real models in the pool that the settings make."""

from __future__ import annotations

from pathlib import Path

from tests.tiny_pipeline import build_tiny_pipeline
from workers.denoising.modules import modules_of
from workers.loading import open_pool
from workers.settings import WorkerSettings


def test_a_model_that_made_room_takes_none_though_a_job_that_had_it_is_still_at_work(
    tmp_path: Path,
) -> None:
    """A job keeps hold of its model while it stores its image, which can take minutes."""
    settings = WorkerSettings(
        model="first",
        model_path=str(build_tiny_pipeline(tmp_path / "first", seed=0)),
        models={"second": str(build_tiny_pipeline(tmp_path / "second", seed=1))},
        models_memory_bytes=1,  # room for one at a time
        device="cpu",
    )
    pool = open_pool(settings)
    with pool.lease("first") as first:
        pass
    with pool.lease("second") as second:
        assert pool.loaded == ["second"]
        weights = {
            family: [weight for _, part in modules_of(family) for weight in part.parameters()]
            for family in (first, second)
        }
    assert all(weight.is_meta for weight in weights[first])
    assert not any(weight.is_meta for weight in weights[second])
    with pool.lease("first") as again:
        assert again is not first
        assert again.embedding(["a cat"]).shape == (1, again.embedder.dim)
