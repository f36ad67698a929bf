"""Captions, held-out pairs and placement."""

from __future__ import annotations

import numpy as np

from models.scenes import (
    BACKGROUNDS,
    SUBJECTS,
    Scene,
    background_words,
    draw_caption,
    draw_scene,
    full_caption,
    is_held_out,
)

BANANA = Scene(
    subject="banana", style="flat", size="large", background="orange", position="on the left"
)


def test_at_least_sixty_subjects_that_are_all_different() -> None:
    assert len(set(SUBJECTS)) == len(SUBJECTS) >= 60


def test_one_pair_in_ten_is_held_out() -> None:
    pairs = [(s, b) for s in SUBJECTS for b in BACKGROUNDS]
    share = sum(is_held_out(*pair) for pair in pairs) / len(pairs)
    assert 0.07 < share < 0.13


def test_no_subject_and_no_background_is_held_out_whole() -> None:
    for subject in SUBJECTS:
        assert sum(is_held_out(subject, background) for background in BACKGROUNDS) <= 4
    for background in BACKGROUNDS:
        assert sum(is_held_out(subject, background) for subject in SUBJECTS) <= 9


def test_the_held_out_pairs_never_change() -> None:
    held_out = [(s, b) for s in SUBJECTS for b in BACKGROUNDS if is_held_out(s, b)]
    assert len(held_out) == 87
    assert held_out[:2] == [("red-apple", "on green grass"), ("red-apple", "on a sandy beach")]


def test_training_scenes_hold_no_held_out_pair() -> None:
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng) for _ in range(500)]
    assert not any(is_held_out(scene.subject, scene.background) for scene in scenes)


def test_the_same_seed_draws_the_same_scenes_and_captions() -> None:
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(50):
        scene = draw_scene(first)
        assert scene == draw_scene(second)
        assert draw_caption(scene, first) == draw_caption(scene, second)


def test_a_caption_describes_its_own_scene_and_no_contradiction_of_it() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        scene = draw_scene(rng)
        caption = draw_caption(scene, rng)
        assert caption.describes(scene)
        if caption.background is not None:
            assert caption.background in caption.text
            other = next(b for b in BACKGROUNDS if b != scene.background)
            changed = Scene(
                subject=scene.subject,
                style=scene.style,
                size=scene.size,
                background=other,
                position=scene.position,
            )
            assert not caption.describes(changed)


def test_full_captions_leave_nothing_out() -> None:
    rng = np.random.default_rng(6)
    for _ in range(50):
        scene = draw_scene(rng)
        caption = draw_caption(scene, rng, full_share=1.0)
        said = (caption.style, caption.size, caption.background, caption.position)
        assert said == (scene.style, scene.size, scene.background, scene.position)


def test_the_full_caption_names_everything() -> None:
    assert full_caption(BANANA) == "a large flat banana on an orange background, on the left"


def test_landscapes_are_said_as_they_are() -> None:
    assert background_words("in the snow") == "in the snow"
    assert background_words("red") == "on a red background"
