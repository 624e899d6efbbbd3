import io

import pytest

from cai_jax.core.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (100_000, "27 h 46 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_the_line_has_count_rate_and_time_left():
    progress = Progress("sl_cai (finetune)", 1200, "updates", Terminal())
    assert progress.line(0.0) == "sl_cai (finetune): 0/1,200 updates, 0.0/s, ? left"
    progress.advance(300)
    # 300 in 60 s are 5 a second: the other 900 take 180 s.
    expected = "sl_cai (finetune): 300/1,200 updates, 5.0/s, 3 min 00 s left"
    assert progress.line(60.0) == expected
    assert progress.line(60.0, "loss 1.5") == expected + ", loss 1.5"


def test_a_terminal_sees_one_line_that_is_cleared_at_the_end():
    stream = Terminal()
    with Progress("x", 2, stream=stream) as progress:
        progress.advance(note="loss 2")
        progress.advance(note="loss 1")
    drawn = stream.getvalue()
    assert "\n" not in drawn
    assert "x: 2/2 steps" in drawn.split("\r\x1b[K")[-2] and "loss 1" in drawn
    assert drawn.endswith("\r\x1b[K")


def test_a_file_sees_what_is_said_alone_and_once():
    stream = io.StringIO()
    with Progress("x", 2, stream=stream) as progress:
        progress.say("4 slots")
        progress.advance(2)
        progress.say("4 slots")
    assert progress.done == 2
    assert stream.getvalue() == "x: 4 slots\n"
