"""Timings of windows add up and show what limited a run."""

from __future__ import annotations

from pipeline.runs.timings import StageTimings, peak_bytes


def test_timings_add_up_except_peak_memory() -> None:
    total = StageTimings(read_s=1, decode_s=2, padding=3, actor_bytes=5) + StageTimings(read_s=0.5, waited_s=4, actor_bytes=9)
    assert total == StageTimings(read_s=1.5, waited_s=4, decode_s=2, padding=3, actor_bytes=9)


def test_limit_is_described() -> None:
    def limit(**seconds: float) -> str:
        return StageTimings(**seconds).describe_limit(actor_seconds=200, seconds=100, source_tokens=300)

    assert "95% of the time and waited 5%" in limit(decode_s=190)
    assert "faster with more or faster actors" in limit(decode_s=190)
    assert "25% of what they read was padding" in limit(decode_s=190, padding=100)
    assert "faster with more --resources.tokenizers" in limit(decode_s=100, read_s=99)
    assert "faster with faster output storage" in limit(decode_s=100, unwritten_s=400, read_s=10)
    assert "faster with a longer run" in limit(decode_s=100, read_s=10)
    assert "decoded 0% of the time" in StageTimings().describe_limit(actor_seconds=0, seconds=0, source_tokens=0)


def test_peak_memory_is_in_bytes() -> None:
    assert 20 * 2**20 < peak_bytes() < 2**40
