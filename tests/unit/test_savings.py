"""The comparison of arms, the replayed arms and the rows on disk, with numbers known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image

from benchmarks.savings.arms import FINAL, INTERMEDIATE, MODM, NIRVANA, NONE, Served, environment
from benchmarks.savings.calibrate import draw_log, trace_of
from benchmarks.savings.comparison import (
    Measured,
    below_alpha,
    better_of,
    compare,
    null_below_alpha,
)
from benchmarks.savings.oracle import largest_k
from benchmarks.savings.replayed import EXACT, RETRIEVAL, ExactMatcher, NearestMatcher, replay
from benchmarks.savings.report import Bounds, answer, missed
from benchmarks.savings.rows import Row, Rows
from benchmarks.savings.run import Parameters, Run
from benchmarks.savings.scores import Floats, Scorer, Scores
from benchmarks.savings.simulated import options_of, simulate_arm
from benchmarks.savings.through_fleet import id_of
from benchmarks.savings.workload import Request, generate
from cache.calibration import Calibration
from cache.entry import Sharing, StateKind
from evaluation.calibration.measurements import Measurement
from evaluation.calibration.pairs import Pair
from evaluation.errors import OptionInvalid
from models import sampling
from models.scenes import Scene

SCENE = generate(1)[0].scene


def request(user: str, prompt: str, scene: Scene = SCENE) -> Request:
    return Request(user=user, prompt=prompt, scene=scene, seed=0)


REQUESTS = [
    request("a", "one"),
    request("a", "one"),
    request("b", "one"),
    request("a", "two"),
    request("a", "one"),
]


def row(number: int, *, outcome: str = "bypass", run: int = 50, seconds: float = 2.0) -> Row:
    return Row(
        row=number,
        outcome=outcome,
        steps_asked=50,
        steps_run=run,
        picture=f"none/{number}.png",
        seconds=seconds,
        timings={"encode_s": 0.25, "denoise_s": 1.0, "decode_s": 0.5},
    )


UNCACHED = [row(number) for number in range(len(REQUESTS))]


def sources(rows: Sequence[Row]) -> list[int | None]:
    return [each.source_row for each in rows]


def test_an_exact_match_answers_the_same_users_same_prompt() -> None:
    matcher = ExactMatcher(REQUESTS)
    found = replay(EXACT, UNCACHED, REQUESTS, matcher, sharing=Sharing.USER, num_kept_max=9)
    assert sources(found) == [None, 0, None, None, 0]
    assert [each.steps_run for each in found] == [50, 0, 50, 50, 0]
    assert found[4].picture == "none/0.png"
    assert found[4].seconds == pytest.approx(2.0 - 1.75)
    shared = replay(EXACT, UNCACHED, REQUESTS, matcher, sharing=Sharing.NAMESPACE, num_kept_max=9)
    assert sources(shared) == [None, 0, 0, None, 0]


def test_the_least_recently_used_picture_makes_room() -> None:
    found = replay(
        EXACT, UNCACHED, REQUESTS, ExactMatcher(REQUESTS), sharing=Sharing.USER, num_kept_max=1
    )
    assert sources(found) == [None, 0, None, None, None]


def test_retrieval_answers_the_nearest_prompt_above_its_threshold() -> None:
    cosines = (1.0, 0.96, 0.0, 0.94, 0.999)
    vectors = np.array([[c, np.sqrt(1 - c * c)] for c in cosines], dtype=np.float32)
    found = replay(
        RETRIEVAL,
        UNCACHED,
        REQUESTS,
        NearestMatcher(vectors),
        sharing=Sharing.USER,
        num_kept_max=9,
    )
    # Row 1 is answered, so it is not kept; row 3 is too far from row 0.
    assert sources(found) == [None, 0, None, None, 0]
    assert found[4].similarity == pytest.approx(0.999, abs=1e-6)
    # The prompt was encoded to be looked up.
    assert found[4].seconds == pytest.approx(2.0 - 1.5)


def measured(rows: Sequence[Row], clip: Floats, judge: Floats, features: Floats) -> Measured:
    return Measured(
        title="an arm",
        rows=rows,
        scores=Scores(clip=clip, judge=judge, features=features),
    )


# Of the re-rolls 0, 1 and 4 of user a: distances 1, 1 and 0 uncached; all 0.25 with the cache.
BASE = measured(
    UNCACHED,
    np.array([0.5, 0.4, 0.6, 0.5, 0.5]),
    np.array([1.0, 0.5, 1.0, 1.0, 0.5]),
    np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]),
)
CACHED = measured(
    [
        row(0, outcome="miss"),
        row(1, outcome="hit", run=10, seconds=1.0),
        row(2, outcome="miss"),
        row(3, outcome="hit", run=40, seconds=1.5),
        replace(row(4, outcome="miss"), seconds=None),
    ],
    np.array([0.5, 0.35, 0.6, 0.46, 0.5]),
    np.array([1.0, 0.25, 1.0, 0.75, 0.5]),
    np.array([[1.0, 0.0], [0.75, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]),
)


def test_an_arm_is_set_against_the_same_jobs_uncached() -> None:
    found = compare(CACHED, BASE, REQUESTS, null=0.1)
    assert (found.jobs, found.hits, found.k_mean) == (5, 2, 25)
    assert found.savings == pytest.approx(50 / 250)
    assert found.latency_mean_s == pytest.approx(6.5 / 4)  # the job that was not timed is left out
    assert found.latency_reduction == pytest.approx(1 - 6.5 / 8)
    assert found.miss_latency_ratio == pytest.approx(1)
    assert found.quality_ratio == pytest.approx(2.41 / 2.5)
    assert found.below_alpha == pytest.approx(1 / 5)  # .35 of .4, not .46 of .5
    assert found.below_alpha_of_hits == pytest.approx(1 / 2)
    assert found.share_below_alpha_excess == pytest.approx(0.1)
    assert found.judge_ratio == pytest.approx(3.5 / 4)
    assert found.judge_ratio_of_hits == pytest.approx(1 / 1.5)
    assert found.diversity == pytest.approx((0.25 + 0.25 + 0) / 3)
    assert found.diversity_ratio == pytest.approx(0.5 / 2)
    assert found.missed() == [
        "judge_ratio",
        "quality_ratio",
        "share_below_alpha_excess",
        "diversity_ratio",
    ]


def test_no_cache_is_its_own_equal() -> None:
    found = compare(BASE, BASE, REQUESTS, null=0.0)
    assert (found.savings, found.latency_reduction, found.below_alpha) == (0, 0, 0)
    assert found.quality_ratio == found.judge_ratio == found.diversity_ratio == 1
    assert found.judge_ratio_of_hits is None
    assert found.missed() == []


def test_what_is_lost_of_a_negative_score_is_measured_by_its_size() -> None:
    uncached = np.array([-0.1, -0.1, 0.2])
    assert below_alpha(np.array([-0.1, -0.12, 0.179]), uncached).tolist() == [0, 1, 1]


def test_two_uncached_seeds_are_compared_job_by_job() -> None:
    others = measured([UNCACHED[1], UNCACHED[3]], np.array([0.4, 0.3]), np.ones(2), np.ones((2, 2)))
    assert null_below_alpha(others, BASE) == 0.5


def test_the_better_of_ours_holds_more_targets_and_then_saves_more() -> None:
    poor = replace(compare(CACHED, BASE, REQUESTS, null=0.0), savings=0.9)
    good = replace(compare(BASE, BASE, REQUESTS, null=0.0), savings=0.2)
    better = replace(good, savings=0.4)
    figures = {"poor": poor, "good": good, "better": better, "nirvana": good}
    assert better_of(figures, ["poor", "good"]) == "good"
    assert better_of(figures, ["poor", "good", "better", "absent"]) == "better"
    assert better_of(figures, ["absent"]) is None
    assert missed(better, 0.2) == []
    assert missed(good, 0.2) == ["savings", "savings_over_nirvana"]
    bounds = Bounds(oracle=0.5, simulated={"better": 0.43, "poor": 0.9, "absent": 0.1})
    last = answer(figures, "better", 0.25, bounds)
    assert (last["savings"], last["savings_nirvana"], last["savings_oracle"]) == (0.4, 0.2, 0.5)
    assert last["simulator_gap_max"] == 0.03
    assert last["arms"]["poor"]["savings"] == 0.9


def test_an_arms_capacity_is_a_quarter_of_what_the_log_would_fill() -> None:
    tables = {StateKind.INTERMEDIATE: ((0.2, 0.5), (0.8, 0.9))}
    served = Served(
        folder=sampling.SMALL,
        revision="1",
        num_inference_steps=50,
        bytes_per_state=1_000,
        calibration=Calibration(revision="1", embedder="clip", tables=tables),
        resumable=frozenset(range(1, 50)),
    )
    assert served.k_set(NIRVANA) == (5, 10, 15, 20, 25)
    assert served.k_set(INTERMEDIATE) == (10, 40)
    assert served.k_set(FINAL) == served.k_set(MODM)  # not calibrated for this kind
    assert served.capacity_bytes(NIRVANA, 100) == 125_000
    assert served.capacity_bytes(INTERMEDIATE, 100) == 50_000
    assert served.capacity_bytes(FINAL, 100) == 25_000
    settings = environment(NIRVANA, served, num_jobs=100, sharing=Sharing.USER, num_threads=1)
    assert settings["NIRVANA_CACHE_THRESHOLDS"] == "paper"
    assert settings["NIRVANA_CACHE_CAPACITY_BYTES"] == "125000"
    off = environment(NONE, served, num_jobs=100, sharing=Sharing.USER, num_threads=1)
    assert off["NIRVANA_CACHE_ENABLED"] == "false"


def test_a_line_that_a_killed_run_left_half_is_cut_off(tmp_path: Path) -> None:
    rows = Rows(tmp_path, "none")
    assert rows.read() == []
    rows.append(UNCACHED[0])
    with (tmp_path / "none.jsonl").open("a") as lines:
        lines.write('{"row": 1, "outc')
    assert rows.read() == [UNCACHED[0]]
    rows.append(UNCACHED[1])
    assert rows.read() == UNCACHED[:2]


def test_a_job_has_one_id_in_an_arm() -> None:
    assert id_of(NONE, 3) == id_of(NONE, 3)
    assert len({id_of(arm, number) for arm in (NONE, FINAL) for number in (3, 4)}) == 4


def test_a_folder_holds_one_run(tmp_path: Path) -> None:
    run = Parameters(
        jobs=12,
        log_seed=2,
        revision="1",
        sharing=Sharing.USER,
        num_threads=1,
        num_reseeded=4,
    )
    run.claim(tmp_path / "out")
    run.claim(tmp_path / "out")
    with pytest.raises(OptionInvalid, match="holds run with jobs 12, not 13: name another folder"):
        replace(run, jobs=13).claim(tmp_path / "out")


def test_pictures_are_scored_for_what_their_own_job_asked(tmp_path: Path) -> None:
    requests = generate(2)
    rows = []
    for number, colour in enumerate(("white", "black")):
        name = f"{number}.png"
        Image.new("RGB", (64, 64), colour).save(tmp_path / name)
        rows.append(replace(row(number), picture=name))
    scorer = Scorer.load(sampling.SMALL)
    found = scorer.score(tmp_path, rows, requests)
    alone = scorer.score(tmp_path, rows[1:], requests)
    assert found.clip[1] == pytest.approx(alone.clip[0], abs=1e-5)
    assert found.judge[1] == alone.judge[0]
    assert np.linalg.norm(found.features, axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert set(found.judge * 4) <= {0.0, 1.0, 2.0, 3.0, 4.0}
    swapped = scorer.score(tmp_path, [replace(rows[0], row=1)], requests)
    assert swapped.clip[0] != pytest.approx(found.clip[0], abs=1e-4)


def test_the_calibration_sees_no_prompt_of_the_evaluation() -> None:
    log = draw_log()
    evaluated = {request.prompt for request in generate()}
    assert len(log) > 4_000
    assert not evaluated & {request.prompt for request in log}
    assert trace_of(log).num_users == len({request.user for request in log})


def test_the_oracle_takes_the_largest_k_that_keeps_both_measures() -> None:
    def scores(clip: float, judge: float) -> dict[str, float]:
        return {"clip_score": clip, "judge": judge}

    measured = Measurement(
        pair=Pair(cached="c", asked="a", similarity=0.9),
        from_noise=(scores(0.5, 0.75), scores(0.9, 1.0)),
        from_state={
            StateKind.FINAL: {
                5: scores(0.1, 1.0),
                25: scores(0.46, 0.75),
                40: scores(0.6, 0.5),
                45: scores(0.44, 1.0),
            }
        },
    )
    assert largest_k(measured) == 25
    assert largest_k(replace(measured, from_state={StateKind.FINAL: {5: scores(0.1, 1.0)}})) == 0


def test_the_simulator_takes_an_arms_capacity_and_thresholds() -> None:
    tables = {StateKind.FINAL: ((0.2, 0.5), (0.8, 0.9))}
    served = Served(
        folder=sampling.SMALL,
        revision="1",
        num_inference_steps=50,
        bytes_per_state=1_000,
        calibration=Calibration(revision="1", embedder="clip", tables=tables),
        resumable=frozenset(range(1, 50)),
    )
    for arm in (NIRVANA, FINAL):
        options = options_of(arm, served)
        assert options.capacity_bytes(100) == served.capacity_bytes(arm, 100)
        assert options.k_set == served.k_set(arm)
    requests = [Request(user="a", prompt="p", scene=SCENE, seed=0)] * 4
    vectors = np.ones((4, 1), dtype=np.float32)
    found = simulate_arm(FINAL, served, requests, vectors, sharing=Sharing.USER)
    assert found.skipped.tolist() == [0, 37, 37, 37]  # repeats
    alone = [replace(request, user=str(n)) for n, request in enumerate(requests)]
    assert simulate_arm(FINAL, served, alone, vectors, sharing=Sharing.USER).savings == 0
    shared = simulate_arm(FINAL, served, alone, vectors, sharing=Sharing.NAMESPACE)
    assert shared.skipped.tolist() == [0, 40, 40, 40]  # of others: no repeats


def test_arms_that_are_not_whole_are_compared_by_their_first_jobs(tmp_path: Path) -> None:
    parameters = Parameters(
        jobs=8, log_seed=2, revision="1", sharing=Sharing.USER, num_threads=1, num_reseeded=4
    )
    for number in range(5):
        Rows(tmp_path, "none").append(row(number))
    served = cast("Served", None)  # not asked for
    run = Run(folder=tmp_path, parameters=parameters, served=served, requests=generate(8), first=4)
    assert [one.row for one in run.rows("none")] == [0, 1, 2, 3]
    assert run.is_whole("none")
    assert not replace(run, first=8).is_whole("none")
    for number in (0, 2):
        Rows(tmp_path, "reseeded").append(row(number))
    assert run.is_whole("reseeded")
