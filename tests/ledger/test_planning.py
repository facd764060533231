"""Planning against closed forms, a slow obvious version and a queue written as a loop."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from expunge.errors import BadInput
from expunge.exact.stages import expected_shards, expected_share, first_stages
from expunge.methods.slices import expected_deletions
from tests.cli.conftest import Run, expunge  # noqa: F401 (fixture)

pytest.importorskip("sqlalchemy")

from expunge.ledger.planning import Limits, Option, Service, Stream, arrivals, finished, placements, simulate
from expunge.ledger.workload import s3t_work, sisa_work


def near(values: np.ndarray, expected: float) -> None:
    """The mean lies within three standard errors, and these are small enough to mean something."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert error < 0.05 * expected
    assert abs(values.mean() - expected) < 3 * error


@pytest.mark.parametrize(("shards", "requests", "by_hand"), [(20, 10, 8.03), (5, 3, 2.44), (2, 1, 1.0)])
def test_shards_that_sisa_touches(shards: int, requests: int, by_hand: float) -> None:
    touched = sisa_work(np.full(20_000, requests), shards, 1, np.random.default_rng(0)).total * shards
    assert by_hand == pytest.approx(expected_shards(shards, requests), abs=0.005)
    if requests == 1:
        np.testing.assert_allclose(touched, 1)
    else:
        near(touched, expected_shards(shards, requests))


@pytest.mark.parametrize("slices", [2, 5, 50])
def test_share_of_a_shard_that_one_deletion_makes_again(slices: int) -> None:
    near(
        sisa_work(np.ones(20_000, int), 4, slices, np.random.default_rng(1)).total * 4, expected_share(slices)
    )


def test_sisa_with_many_deletions_against_the_obvious_version() -> None:
    rng = np.random.default_rng(2)
    shards, slices, hits = 3, 4, 5
    slow = []
    for _ in range(4_000):
        cells = np.stack([rng.integers(shards, size=hits), rng.integers(slices, size=hits)], 1)
        first = first_stages(cells, shards, slices)
        slow.append(sum(j for f in first for j in range(f + 1, slices + 1)) / (shards * 10))
    fast = sisa_work(np.full(4_000, hits), shards, slices, rng)
    error = np.sqrt((np.var(slow) + fast.total.var()) / 4_000)
    assert abs(np.mean(slow) - fast.total.mean()) < 3 * error < 0.02
    assert np.all(fast.longest <= fast.total) and np.all(fast.total <= 3 * fast.longest + 1e-12)


@pytest.mark.parametrize(("sequences", "by_hand"), [(1, 68.5), (3, 99.5), (6, 119.8)])
def test_deletions_until_s3t_has_nothing_left(sequences: int, by_hand: float) -> None:
    work = s3t_work(np.ones(30_000, int), 5, 6, sequences, np.random.default_rng(3), restore="all")
    times = np.diff(np.flatnonzero(work.total))
    assert expected_deletions(30, 5 * sequences) == pytest.approx(by_hand, abs=0.05)
    near(times, by_hand)
    assert set(work.total) == {0, sequences}  # all five shards, each along its sequences


def test_s3t_restores_a_shard_after_its_own_coupons() -> None:
    work = s3t_work(np.ones(30_000, int), 1, 4, 3, np.random.default_rng(4))
    near(np.diff(np.flatnonzero(work.total)), 4 * (1 + 1 / 2 + 1 / 3))


def test_a_run_waits_for_its_window_and_for_the_run_before() -> None:
    seconds = np.random.default_rng(5).exponential(0.9, 500)
    ends, last = [], 0.0
    for i, s in enumerate(seconds):
        last = max(i + 1.0, last) + s
        ends.append(last)
    np.testing.assert_allclose(finished(seconds, 1.0), ends)


def test_requests_are_as_many_and_as_bursty_as_asked_for() -> None:
    rng, service = np.random.default_rng(6), Service(window=24)
    calm = arrivals(Stream(users=3_650_000, yearly=0.01), service, 20_000, rng)
    assert calm.mean() == pytest.approx(100, rel=0.01) and calm.var() == pytest.approx(100, rel=0.05)
    wild = arrivals(Stream(users=3_650_000, yearly=0.01, bursts=0.5), service, 20_000, rng)
    # Negative binomial: variance = mean + bursts * mean^2.
    assert wild.mean() == pytest.approx(100, rel=0.03) and wild.var() == pytest.approx(5_100, rel=0.1)
    assert arrivals(Stream(users=7, yearly=1.0), Service(window=876_000), 5, rng).sum() == 7


def test_windows_of_one_day_share_its_rate() -> None:
    stream, rng = Stream(users=10**8, yearly=0.01, bursts=1.0), np.random.default_rng(7)
    hours = arrivals(stream, Service(window=1), 24 * 400, rng).reshape(400, 24)
    within, between = hours.std(1).mean(), hours.mean(1).std()
    assert within < 0.1 * between


def test_rows_of_a_user_that_lie_together_count_once() -> None:
    rng, asked = np.random.default_rng(8), np.full(2_000, 50)
    assert placements(asked, Stream(rows=9, together=1), rng).tolist() == [50] * 2_000
    assert placements(asked, Stream(rows=9, together=0), rng).tolist() == [450] * 2_000
    near(placements(asked, Stream(rows=9, together=0.25), rng), 50 + 50 * 8 * 0.75)


def test_a_forecast_by_hand() -> None:
    # One window of 10 days that surely has requests, training of 5 days: latencies run from 5 to 15 days.
    stream = Stream(users=36_500, yearly=1.0, deadline=12, days=10)
    service = Service(training=5 * 86_400, window=240, price=2, model_bytes=100)
    [retrain] = simulate(stream, service, [Option(method="retrain")]).forecasts
    assert (retrain.trainings, retrain.hours, retrain.money, retrain.storage) == (1, 120, 240, 100)
    assert retrain.utilization == pytest.approx(0.5) and retrain.missed == pytest.approx(0.3)
    assert retrain.latency is not None and retrain.latency.longest == pytest.approx(15)
    assert retrain.latency.median == pytest.approx(10, abs=0.1)
    assert retrain.latency.p95 == pytest.approx(14.5, abs=0.1)
    assert retrain.obstacles == ["30.00% of requests miss their deadline"]


def test_workers_shorten_a_run_down_to_its_longest_shard() -> None:
    stream, option = Stream(users=10**6, yearly=1, days=1), Option(method="sisa", shards=4)
    days = {}
    for workers in (1, 2, 4, 8):
        [f] = simulate(stream, Service(training=86_400, workers=workers), [option]).forecasts
        days[workers] = f.utilization
        assert f.trainings == 1  # so many requests that every shard is hit
    assert days == pytest.approx({1: 1, 2: 0.5, 4: 0.25, 8: 0.25})


def test_storage_and_accuracy() -> None:
    service = Service(model_bytes=1_000, adapter_bytes=10, features=4)
    options = [
        Option(method="retrain"), Option(method="sisa", shards=3, slices=5),
        Option(method="s3t", shards=3, slices=5, sequences=2), Option(method="acu"),
        Option(method="sisa", shards=32, slices=1), Option(method="sisa", shards=4),
    ]  # fmt: skip
    plan = simulate(
        Stream(), service, options, accuracy={("sisa", 2): 0.9, ("sisa", 8): 0.8, ("retrain", 1): 0.95}
    )
    assert [f.storage for f in plan.forecasts] == [1_000, 15_000, 1_060, 1_128, 32_000, 4_000]
    assert [f.accuracy for f in plan.forecasts] == [
        pytest.approx(0.95), pytest.approx(0.9 - 0.1 * np.log(1.5) / np.log(4)), None, None, None, pytest.approx(0.85),
    ]  # fmt: skip


def test_recommendation_is_the_least_work_without_an_obstacle() -> None:
    stream, service = Stream(users=1_000, yearly=0.1), Service(training=3600)
    options = [Option(method=m) for m in ("retrain", "approximate")] + [
        Option(method="sisa", shards=10, slices=5)
    ]
    plan = simulate(stream, service, options)
    assert (
        plan.recommended == "sisa 10x5"
        and "approximate does less, but its forgetting is audited" not in plan.reason
    )
    cheap = service.replace(approximate=0.001, audit=0.001)
    assert (
        "approximate does less, but its forgetting is audited, not exact"
        in simulate(stream, cheap, options).reason
    )
    assert simulate(stream, cheap, options, Limits(empirical=True)).recommended == "approximate"
    none = simulate(stream, service, options, Limits(accuracy=0.9))
    assert none.recommended is None and "retrain: its accuracy is not known" in none.reason
    assert simulate(stream, service, options, Limits(storage=1e8)).recommended == "retrain"


def test_an_overloaded_service_is_told_so() -> None:
    [f] = simulate(Stream(users=10**6), Service(training=2 * 86_400), [Option(method="retrain")]).forecasts
    assert f.utilization == pytest.approx(2) and "runs take 2 times the time there is" in f.obstacles


def test_nobody_asks() -> None:
    [f] = simulate(Stream(yearly=0), Service(), [Option(method="sisa", shards=5)]).forecasts
    assert (f.trainings, f.latency, f.missed) == (0, None, 0)


def test_options_do_not_depend_on_their_company() -> None:
    a, b = Option(method="sisa", shards=5, slices=5), Option(method="s3t", shards=5, slices=5, sequences=3)
    both = simulate(Stream(together=0.5, bursts=1), Service(), [a, b], seed=3).forecasts
    assert simulate(Stream(together=0.5, bursts=1), Service(), [b], seed=3).forecasts == both[1:]


def test_a_hundred_million_users_take_seconds() -> None:
    started = time.process_time()
    options = [Option(method="sisa", shards=s, slices=5) for s in (5, 50, 500)] + [Option(method="retrain")]
    plan = simulate(Stream(users=10**8, yearly=0.05, bursts=1), Service(), options)
    assert 3_000_000 < plan.requests < 7_000_000
    assert time.process_time() - started < 5


def test_refusals() -> None:
    with pytest.raises(BadInput, match="no option to plan with"):
        simulate(Stream(), Service(), [])
    with pytest.raises(BadInput, match="8760000 windows of 0.001 hours are more than 200000"):
        simulate(Stream(), Service(window=0.001), [Option(method="retrain")])
    with pytest.raises(BadInput, match=r"at most as many sequences as slices \(2\), not 3"):
        simulate(Stream(), Service(), [Option(method="s3t", slices=2, sequences=3)])


def test_command(expunge: Run, tmp_path: Path) -> None:  # noqa: F811
    command = [
        "ledger", "plan", "--users", "1e8", "--method", "retrain", "--method", "sisa", "--method", "s3t", "--shards", "5,20",
        "--slices", "2", "--sequences", "1,2,9", "--training", "1", "--price", "2", "--accuracy", "sisa:5=0.9",
        "--accuracy", "sisa:20=0.8", "--min-accuracy", "0.85", "--set", "model_bytes=7",
    ]  # fmt: skip
    made = expunge(*command, "--chart", tmp_path / "chart.json", "--json")
    assert made.code == 0, made.err
    labels = [f["label"] for f in made.json["forecasts"]]
    assert labels == [
        "retrain", "sisa 5x2", "sisa 20x2", "s3t 5x2 B=1", "s3t 5x2 B=2", "s3t 20x2 B=1", "s3t 20x2 B=2",
    ]  # fmt: skip
    assert made.json["recommended"] == "sisa 5x2" and made.json["forecasts"][1]["storage"] == 70
    assert made.json["forecasts"][0]["money"] == 2 * 365  # trained every day
    drawn = json.loads((tmp_path / "chart.json").read_text())
    assert [row["option"] for row in drawn["data"]["values"]] == labels
    shown = expunge(*command)
    assert shown.code == 0 and "recommended: sisa 5x2 does the least work" in shown.out
    assert (
        "s3t 5x2 B=2: adapters stand 29 deletions on average" in shown.out
    )  # 10 (1 + 1/2 + ... + 1/10) = 29.29
    capacities = {f["label"]: f["capacity"] for f in made.json["forecasts"]}
    assert capacities["retrain"] is None
    assert capacities["s3t 5x2 B=1"] == pytest.approx(10 * (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--method", "sisaa"], "nothing is known of what 'sisaa' costs"),
        (["--shards", "5,x"], "--shards '5,x' is not a list of positive whole numbers"),
        (["--accuracy", "sisa=much"], "--accuracy 'sisa=much' is not METHOD:SHARDS=VALUE"),
        (["--together", "2"], "stream: 'together' should be less than or equal to 1, got 2.0"),
        (["--set", "modelbytes=3"], "service: unknown key 'modelbytes'"),
        (["--method", "s3t", "--slices", "1", "--sequences", "2"], "there is no option to plan with"),
    ],
)
def test_command_refuses(expunge: Run, arguments: list[str], sentence: str) -> None:  # noqa: F811
    refused = expunge("ledger", "plan", *arguments)
    assert refused.code == 2 and sentence in refused.err
