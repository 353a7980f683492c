"""What limited a run is read off its windows' efforts."""

from __future__ import annotations

from pipeline.runs.timings import StageTimings, peak_bytes


def test_efforts_add_up_but_for_the_most_memory() -> None:
    both = StageTimings(read_s=1, decode_s=2, padding=3, actor_bytes=5) + StageTimings(read_s=0.5, waited_s=4, actor_bytes=9)
    assert both == StageTimings(read_s=1.5, waited_s=4, decode_s=2, padding=3, actor_bytes=9)


def test_the_limit_is_named() -> None:
    def limit(**seconds: float) -> str:
        return StageTimings(**seconds).summed_up(actor_seconds=200, seconds=100, source_tokens=300)

    assert "decoded 95% of the time and waited 5%" in limit(decode_s=190)
    assert "faster with more actors" in limit(decode_s=190)
    assert "25% of what they read was padding" in limit(decode_s=190, padding=100)
    assert "faster with more --resources.tokenizers" in limit(decode_s=100, read_s=99)
    assert "faster with a faster output storage" in limit(decode_s=100, unwritten_s=400, read_s=10)
    assert "faster with a longer run" in limit(decode_s=100, read_s=10)
    assert "decoded 0% of the time" in StageTimings().summed_up(actor_seconds=0, seconds=0, source_tokens=0)


def test_the_most_memory_of_a_process_is_in_bytes() -> None:
    assert 20 * 2**20 < peak_bytes() < 2**40
