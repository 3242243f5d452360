"""The fixed computation beside a launch: what is timed, and which of its times is told."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.measure import sentinel
from ray_jobs.measure.sentinel import REPEATS, sentinel_ns


def ticking(walls_ns: list[int]) -> Callable[[], int]:
    """A clock on which each repetition takes one of these times, and what lies between them a second."""
    times: list[int] = []
    now = 0
    for wall in walls_ns:
        times += [now, now + wall]
        now += wall + 10**9
    said = iter(times)
    return lambda: next(said)


@given(st.lists(st.integers(1, 10**9), min_size=REPEATS, max_size=REPEATS))
@settings(max_examples=20)
def test_the_sentinels_time_is_the_median_of_its_repetitions(walls_ns: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentinel, "LOOPS", 1)
        patch.setattr(sentinel, "FLOATS", 1)
        assert sentinel_ns(ticking(walls_ns)) == sorted(walls_ns)[REPEATS // 2]


def test_one_disturbed_repetition_does_not_move_it() -> None:
    assert sentinel_ns(ticking([100, 100, 10**9, 100, 100])) == 100


def test_the_same_work_and_nothing_else_stands_between_the_readings() -> None:
    """The memory is made before the first of them."""
    ran: list[str] = []

    def clock() -> int:
        return 0

    def profile(frame: FrameType, event: str, called: Any) -> None:
        if event == "call" and frame.f_code is clock.__code__:
            ran.append("clock")
        elif event == "c_call" and frame.f_code is sentinel_ns.__code__:
            ran.append(called.__name__)
        elif event == "call" and frame.f_back is not None and frame.f_back.f_code is sentinel_ns.__code__:
            ran.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        sentinel_ns(clock)
    finally:
        sys.setprofile(None)
    first = ran.index("clock")
    inside = [name for name in ran[first:] if name in ("clock", "sum", "ones")]
    assert inside == ["clock", "sum", "sum", "sum", "clock"] * REPEATS
    assert "ones" in ran[:first]


def test_on_the_real_clock_it_takes_time() -> None:
    assert sentinel_ns() > 0
