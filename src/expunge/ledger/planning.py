"""What a stream of deletion requests would cost, before anybody builds the service: methods, shards and slices compared.

Requests that arrive within a window are run together when it closes, one run after another. Everything is drawn per window
and shard, never per user, so that a hundred million users cost no more than a thousand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from expunge.errors import BadInput
from expunge.ledger.workload import Work, s3t_work, sisa_work
from expunge.methods.slices import expected_deletions
from expunge.parameters import Parameters, param
from expunge.record import Record

MethodName = Literal["retrain", "sisa", "s3t", "acu", "approximate"]

MAX_WINDOWS = 200_000
"""More would be simulated for minutes, and shows nothing that wider windows do not."""

WITHIN = 64
"""Arrivals per window that stand for all of it in the quantiles of latency."""


class Stream(Parameters):
    """Who asks, how often, and by when it has to be done."""

    title = "stream"

    users: int = param(100_000, "people whose rows were learned from", source="ours", ge=1, le=10**10)
    yearly: float = param(0.01, "share of the users that ask within a year", source="ours", ge=0, le=1)
    rows: int = param(10, "rows of a user", source="ours", ge=1)
    together: float = param(
        1.0, "share of a user's further rows that lie in the slice of the first; 1 where slices are allotted by user",
        source="ours", ge=0, le=1,
    )  # fmt: skip
    bursts: float = param(
        0.0, "squared coefficient of variation of a day's rate, from news and campaigns; 0 is a Poisson stream",
        source="ours", ge=0,
    )  # fmt: skip
    deadline: float = param(
        30.0, "days from a request to its deadline", source="a month, as in Art. 12", gt=0
    )
    days: float = param(365.0, "days that are simulated", source="a year", gt=0)


class Service(Parameters):
    """What training takes, and how requests are gathered."""

    title = "service"

    training: float = param(
        36_000.0, "seconds that training on everything takes one worker", source="ours", gt=0
    )
    window: float = param(24.0, "hours for which requests are gathered", source="ours", gt=0)
    workers: int = param(1, "workers that train shards side by side", source="ours", ge=1)
    price: float = param(0.0, "money per hour of one worker", source="ours", ge=0)
    model_bytes: float = param(1e8, "size of one model on disk, in bytes", source="ours", ge=0)
    adapter_bytes: float = param(
        1e6, "s3t: size of the adapters of one sequence, in bytes", source="ours", ge=0
    )
    features: int = param(512, "acu: width of the frozen backbone's output", source="ours", ge=1)
    row_seconds: float = param(0.001, "acu: seconds to remove one row", source="ours", ge=0)
    approximate: float = param(0.05, "approximate: cost of a run as a share of training", source="ours", ge=0)
    audit: float = param(0.05, "approximate: cost of its audit as a share of training", source="ours", ge=0)


class Option(Parameters):
    """One way to forget."""

    title = "option"

    method: MethodName
    shards: int = Field(default=1, ge=1, le=10_000, description="(S) of sisa and s3t")
    slices: int = Field(default=1, ge=1, le=10_000, description="(R) of sisa, (L) of s3t")
    sequences: int = Field(default=1, ge=1, description="(B) of s3t")

    @property
    def label(self) -> str:
        """The method, with shards x slices where it has them."""
        extra = f" B={self.sequences}" if self.method == "s3t" else ""
        return (
            f"{self.method} {self.shards}x{self.slices}{extra}"
            if self.method in ("sisa", "s3t")
            else self.method
        )


class Limits(Parameters):
    """What an option must keep to be recommended."""

    title = "limits"

    missed: float = param(
        0.0, "largest share of requests that miss their deadline", source="ours", ge=0, le=1
    )
    accuracy: float | None = param(None, "lowest accuracy; needs measured points", source="ours")
    storage: float | None = param(None, "largest storage in bytes", source="ours", gt=0)
    empirical: bool = param(False, "whether forgetting that is only audited is good enough", source="ours")


class Latency(Record):
    """Quantiles of the days from a request to the end of its run."""

    median: float
    p95: float
    p99: float
    longest: float


class Forecast(Record):
    """What one option would cost."""

    option: Option
    label: str
    guarantee: Literal["exact", "empirical"]
    trainings: float = Field(description="work of all runs, in trainings on everything")
    hours: float = Field(description="the same in hours of one worker")
    money: float
    utilization: float = Field(
        description="share of the time in which a run is going on; above 1 it never catches up"
    )
    latency: Latency | None = Field(description="none where nobody asked")
    missed: float = Field(description="share of requests that missed their deadline")
    accuracy: float | None = Field(description="from measured points; none outside of them")
    storage: float = Field(description="bytes of what must be kept besides the data")
    capacity: float | None = Field(
        default=None,
        description="s3t: expected deletions from random slices, one after the other and without any training, until no "
        "shard has adapters left",
    )
    obstacles: list[str] = Field(description="why it is not recommended")


class Plan(Record):
    """Forecasts for all options, and which of them to take."""

    stream: Stream
    service: Service
    requests: int
    windows: int
    forecasts: list[Forecast]
    recommended: str | None = Field(description="label of an option; none where all have obstacles")
    reason: str


def simulate(
    stream: Stream,
    service: Service,
    options: Sequence[Option],
    limits: Limits | None = None,
    accuracy: Mapping[tuple[MethodName, int], float] | None = None,
    seed: int = 0,
) -> Plan:
    """Run one stream of requests through every option.

    Slices are of equal size, which a keyed hash gives up to ``1 / sqrt(rows of a slice)``; shards that are trained in one
    run share the workers perfectly. A window's requests arrive evenly over it. All options see the same requests.

    Args:
        stream: the requests.
        service: what training takes.
        options: what is compared.
        limits: what the recommended option must keep.
        accuracy: measured accuracies by method and number of shards. Between two of them it is linear in the logarithm of
            the number of shards; outside it is unknown.
        seed: fixes the draws.

    Raises:
        BadInput: where there is no option, or more windows than can be simulated.
    """
    if not options:
        raise BadInput("there is no option to plan with; name at least one method")
    count = int(np.ceil(stream.days * 24 / service.window))
    if count > MAX_WINDOWS:
        raise BadInput(
            f"{count} windows of {service.window:g} hours are more than {MAX_WINDOWS}; simulate fewer days or wider windows"
        )
    limits = limits or Limits()
    requests = arrivals(stream, service, count, np.random.default_rng(seed))
    forecasts = []
    for option in options:
        # Each option has a stream of its own, so that adding one changes no other.
        rng = np.random.default_rng([seed, *option.label.encode()])
        hits = placements(requests, stream, rng)
        forecast = _forecast(
            option, stream, service, requests, work_of(option, service, stream, requests, hits, rng)
        )
        forecast.accuracy = interpolated(accuracy or {}, option)
        if option.method == "s3t":
            slices = option.shards * option.slices
            forecast.capacity = expected_deletions(slices, option.shards * option.sequences)
        forecast.obstacles = _obstacles(forecast, limits)
        forecasts.append(forecast)
    chosen, reason = _recommended(forecasts)
    return Plan(
        stream=stream, service=service, requests=int(requests.sum()), windows=count, forecasts=forecasts,
        recommended=chosen, reason=reason,
    )  # fmt: skip


def arrivals(stream: Stream, service: Service, windows: int, rng: np.random.Generator) -> np.ndarray:
    """`[windows]` requests: Poisson, with a rate that is gamma distributed from day to day; never more than users."""
    rate = stream.users * stream.yearly * service.window / (24 * 365)
    rates = np.full(windows, rate)
    if stream.bursts > 0:
        # Windows of one day share its rate; a window of several days has the mean of theirs.
        days = service.window / 24
        shape = max(days, 1) / stream.bursts
        levels = rng.gamma(shape, 1 / shape, windows)
        rates *= levels if days >= 1 else levels[(np.arange(windows) * days).astype(np.int64)]
    drawn = rng.poisson(rates)
    return np.diff(np.minimum(np.cumsum(drawn), stream.users), prepend=0)


def placements(requests: np.ndarray, stream: Stream, rng: np.random.Generator) -> np.ndarray:
    """`[windows]` independent draws of a slice that the rows of a window's requests make.

    One for the first row of each user, with which a binomial number of the others lies.
    """
    return requests + rng.binomial(requests * (stream.rows - 1), 1 - stream.together)


def work_of(
    option: Option,
    service: Service,
    stream: Stream,
    requests: np.ndarray,
    hits: np.ndarray,
    rng: np.random.Generator,
) -> Work:
    """Work of each window's run, in trainings on everything."""
    if option.method == "sisa":
        return sisa_work(hits, option.shards, option.slices, rng)
    if option.method == "s3t":
        return s3t_work(hits, option.shards, option.slices, option.sequences, rng)
    if option.method == "acu":
        shares = requests * stream.rows * service.row_seconds / service.training
    else:
        per_run = 1.0 if option.method == "retrain" else service.approximate + service.audit
        shares = per_run * (requests > 0)
    return Work(shares, shares)


def storage_of(option: Option, service: Service) -> float:
    """Bytes of the models, checkpoints and statistics that the method has to keep."""
    if option.method == "sisa":
        return option.shards * option.slices * service.model_bytes
    if option.method == "s3t":
        return service.model_bytes + option.shards * option.sequences * service.adapter_bytes
    if option.method == "acu":
        return service.model_bytes + 8 * service.features**2
    return service.model_bytes


def interpolated(points: Mapping[tuple[MethodName, int], float], option: Option) -> float | None:
    """Accuracy at the option's number of shards; none outside of what was measured."""
    known = sorted((shards, value) for (method, shards), value in points.items() if method == option.method)
    if not known or not known[0][0] <= option.shards <= known[-1][0]:
        return None
    return float(np.interp(np.log(option.shards), np.log([s for s, _ in known]), [v for _, v in known]))


def finished(seconds: np.ndarray, window: float) -> np.ndarray:
    """`[windows]` seconds at which each window's run ends: it starts when its window has closed and the last run ended.

    The recursion ``f_w = max(w-th close, f_{w-1}) + seconds_w`` written out: a run ends when the busy time that it is part
    of began, plus all work since.
    """
    closes = window * np.arange(1, len(seconds) + 1)
    total = np.cumsum(seconds)
    return total + np.maximum.accumulate(closes - (total - seconds))


def _forecast(option: Option, stream: Stream, service: Service, requests: np.ndarray, work: Work) -> Forecast:
    seconds = service.training * np.maximum(work.longest, work.total / service.workers)
    window, deadline = service.window * 3600, stream.deadline * 86_400
    oldest = finished(seconds, window) - window * np.arange(
        len(requests)
    )  # latency of a window's first arrival
    asked = int(requests.sum())
    late = np.clip((oldest - deadline) / window, 0, 1) @ requests
    trainings = float(work.total.sum())
    hours = trainings * service.training / 3600
    return Forecast(
        option=option,
        label=option.label,
        guarantee="empirical" if option.method == "approximate" else "exact",
        trainings=trainings,
        hours=hours,
        money=hours * service.price,
        utilization=float(seconds.sum() / (window * len(requests))),
        latency=_quantiles(oldest, requests, window) if asked else None,
        missed=float(late / asked) if asked else 0.0,
        accuracy=None,
        storage=float(storage_of(option, service)),
        obstacles=[],
    )


def _quantiles(oldest: np.ndarray, requests: np.ndarray, window: float) -> Latency:
    some = requests > 0
    ages = oldest[some, None] - window * (np.arange(WITHIN) + 0.5) / WITHIN
    order = np.argsort(ages, axis=None)
    weights = np.cumsum(np.repeat(requests[some], WITHIN)[order])
    at = np.searchsorted(weights, np.array([0.5, 0.95, 0.99]) * weights[-1])
    median, p95, p99 = (ages.ravel()[order[at]] / 86_400).tolist()
    return Latency(median=median, p95=p95, p99=p99, longest=float(oldest[some].max() / 86_400))


def _obstacles(forecast: Forecast, limits: Limits) -> list[str]:
    found = []
    if forecast.guarantee == "empirical" and not limits.empirical:
        found.append("its forgetting is audited, not exact")
    if forecast.utilization > 1:
        found.append(f"runs take {forecast.utilization:.3g} times the time there is")
    if forecast.missed > limits.missed:
        found.append(f"{forecast.missed:.2%} of requests miss their deadline")
    if limits.accuracy is not None:
        if forecast.accuracy is None:
            found.append("its accuracy is not known from the measured points")
        elif forecast.accuracy < limits.accuracy:
            found.append(f"its accuracy of {forecast.accuracy:.4g} is below {limits.accuracy:.4g}")
    if limits.storage is not None and forecast.storage > limits.storage:
        found.append(f"it keeps {forecast.storage:.3g} bytes, more than {limits.storage:.3g}")
    return found


def _recommended(forecasts: Sequence[Forecast]) -> tuple[str | None, str]:
    """The one with the least work among those without obstacles; of equals, the one that keeps least."""
    possible = [f for f in forecasts if not f.obstacles]
    if not possible:
        return None, "every option has an obstacle: " + "; ".join(
            f"{f.label}: {', '.join(f.obstacles)}" for f in forecasts
        )
    best = min(possible, key=lambda f: (f.trainings, f.storage))
    reason = f"{best.label} does the least work, {best.trainings:.4g} trainings on everything"
    if best.latency is not None:
        reason += f", and ends 99 % of requests within {best.latency.p99:.3g} days"
    passed = [f for f in forecasts if f.obstacles and f.trainings < best.trainings]
    return best.label, reason + "".join(
        f"; {f.label} does less, but {', '.join(f.obstacles)}" for f in passed
    )
