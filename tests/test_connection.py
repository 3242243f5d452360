"""Leaving a cluster when told to: without a cluster."""

import os
import signal
import time

import pytest

from ray_jobs.cluster.connection import Terminated, _terminable


def told_to_end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


def told_inside_a_call_of_ray() -> None:
    """Its calls catch what a signal handler raised, and raise a KeyboardInterrupt of their own."""
    try:
        told_to_end()
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None


def told_twice() -> None:
    try:
        told_to_end()
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)


def test_sigterm_is_told_from_ctrl_c() -> None:
    with pytest.raises(Terminated), _terminable():
        told_to_end()
    with pytest.raises(KeyboardInterrupt) as raised, _terminable():
        raise KeyboardInterrupt
    assert raised.type is KeyboardInterrupt


def test_sigterm_inside_a_call_of_ray_is_sigterm_still() -> None:
    with pytest.raises(Terminated), _terminable():
        told_inside_a_call_of_ray()


def test_a_second_sigterm_does_not_disturb_the_clean_up_and_afterwards_all_is_as_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), _terminable():
        told_twice()
    assert signal.getsignal(signal.SIGTERM) is before
