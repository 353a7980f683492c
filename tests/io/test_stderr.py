"""Single lines can be kept off stderr, for writers in C++ too."""

from __future__ import annotations

import os
import time

import pytest

from pipeline.io.stderr import hide_lines


def test_lines_with_the_text_are_hidden_and_others_pass(capfd: pytest.CaptureFixture[str]) -> None:
    with hide_lines(b"restart"):
        os.write(2, b"first\nan actor cannot re")
        os.write(2, b"start\n")
        os.write(2, b"second\n")
        os.write(2, b"no line end")
    os.write(2, b"\nrestart\n")
    assert capfd.readouterr().err == "first\nsecond\nno line end\nrestart\n"


def test_hiding_ends_after_a_while(capfd: pytest.CaptureFixture[str]) -> None:
    with hide_lines(b"restart", timeout_s=0.05):
        time.sleep(0.5)
        os.write(2, b"restart\n")
    assert capfd.readouterr().err == "restart\n"


def test_closed_stderr_is_left_alone(capfd: pytest.CaptureFixture[str]) -> None:
    screen = os.dup(2)
    os.close(2)
    try:
        with hide_lines(b"restart"):
            pass
    finally:
        os.dup2(screen, 2)
        os.close(screen)
    assert capfd.readouterr().err == ""
