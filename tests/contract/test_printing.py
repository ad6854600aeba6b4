"""What tasks and actors print reaches the driver's own standard output."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from helpers import Signal

import skate

Start = Callable[..., object]

OWN = "Ray shows it in a form of its own, some time later, and waits for none of it"


@skate.remote
def say(*lines: str) -> int:
    for line in lines:
        print(line)
    print("to stderr", file=sys.stderr)
    return os.getpid()


@skate.remote
class Talker:
    def __init__(self) -> None:
        print("made")

    def say(self, text: str, end: str = "\n") -> int:
        print(text, end=end)
        return os.getpid()

    def write_and_die(self, data: bytes) -> None:
        os.write(1, data)
        os.kill(os.getpid(), signal.SIGKILL)


def printed(capfd: pytest.CaptureFixture[str]) -> str:
    """All that was printed; ends the session, which prints what is on its way."""
    skate.shutdown()
    return capfd.readouterr().out


@pytest.mark.differs(ray=OWN)
def test_what_a_task_prints_comes_with_its_name_and_process(
    start: Start, engine_name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    start(num_cpus=1)
    pid = skate.get(say.remote("one", "two"))
    skate.shutdown()
    out, err = capfd.readouterr()
    prefix = "" if engine_name == "inline" else f"(say pid={pid}) "
    assert out == f"{prefix}one\n{prefix}two\n"
    assert err == f"{prefix}to stderr\n"


@pytest.mark.differs(ray=OWN)
def test_an_actor_prints_under_its_class(
    start: Start, engine_name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    start(num_cpus=1)
    talker = Talker.remote()
    pid = skate.get(talker.say.remote("hello"))
    prefix = "" if engine_name == "inline" else f"(Talker pid={pid}) "
    assert printed(capfd) == f"{prefix}made\n{prefix}hello\n"


@pytest.mark.differs(ray="Ray folds lines that look alike into one")
def test_lines_of_many_workers_are_never_mixed(
    start: Start, engine_name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    start(num_cpus=4)
    lines = [[f"{task}:{i}:{'x' * 300}" for i in range(200)] for task in range(4)]
    skate.get([say.remote(*each) for each in lines])
    out = printed(capfd).splitlines()
    texts = [re.sub(r"^\(say pid=\d+\) ", "", line) for line in out]
    assert sorted(texts) == sorted(line for each in lines for line in each)
    for task in range(4):
        mine = [text for text in texts if text.startswith(f"{task}:")]
        assert mine == lines[task]


@pytest.mark.differs(ray="Ray drops what it cannot bring in time; its logs keep it")
def test_what_was_printed_while_nobody_read_is_not_lost(
    start: Start, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SKATE_LOG_LINES_PER_SECOND", "0")
    start(num_cpus=1)
    lines = [f"{i} {'y' * 1000}" for i in range(8000)]  # more than pipes hold
    skate.get(say.remote(*lines))
    texts = [re.sub(r"^\(\w+ pid=\d+\) ", "", x) for x in printed(capfd).splitlines()]
    assert texts == lines


@pytest.mark.differs(ray=OWN)
def test_a_line_without_an_end_is_shown_too(
    start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    start(num_cpus=1)
    talker, signal_ = Talker.remote(), Signal.remote()
    skate.get(talker.say.remote("half", end=""))
    skate.get(talker.say.remote(" a line"))
    del signal_
    assert "half a line\n" in printed(capfd)


@skate.remote
def wait_for_timers() -> None:
    while any(isinstance(each, threading.Timer) for each in threading.enumerate()):
        time.sleep(0.01)


@pytest.mark.differs(ray=OWN)
@pytest.mark.parametrize("comes_next", ["a line", "nothing"])
def test_text_without_an_end_is_shown_under_the_name_of_its_task(
    start: Start, engine_name: str, capfd: pytest.CaptureFixture[str], comes_next: str
) -> None:
    @skate.remote
    def ask() -> int:
        print("half", end="")
        return os.getpid()

    start(num_cpus=1)
    pid = skate.get(ask.remote())
    if comes_next == "a line":
        skate.get(say.remote("one"))
    elif engine_name != "inline":
        skate.get(wait_for_timers.remote())
    out = printed(capfd)
    if engine_name == "inline":
        assert out.startswith("half")
    else:
        assert out.startswith(f"(ask pid={pid}) half\n")


@pytest.mark.differs(ray=OWN)
@pytest.mark.parametrize("kind", ["task", "actor", "stream", "failure"])
def test_text_without_an_end_is_shown_though_its_process_ends_at_once(
    start: Start, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    @skate.remote
    def ask(error: bool = False) -> None:
        print("half", end="")
        if error:
            raise ValueError("no")

    @skate.remote(num_returns="streaming")
    def ask_twice() -> Iterator[int]:
        print("half", end="")
        yield 1
        print(" a line", end="")

    start(num_cpus=1)
    if kind == "task":
        skate.get(ask.remote())
    elif kind == "failure":
        with pytest.raises(ValueError, match="no"):
            skate.get(ask.remote(error=True))
    elif kind == "stream":
        assert len(list(ask_twice.remote())) == 1
    else:
        talker = Talker.remote()
        skate.get(talker.say.remote("half", end=""))
        skate.kill(talker)
    assert "half" in printed(capfd)


@pytest.mark.differs(inline="tasks have the streams of the driver, here pytest's")
@pytest.mark.differs(ray="Ray's have the names of its log files")
def test_the_streams_of_a_task_have_the_names_and_modes_of_pythons_own(
    start: Start,
) -> None:
    @skate.remote
    def look() -> list[tuple[str, str]]:
        return [(each.name, each.mode) for each in (sys.stdout, sys.stderr)]

    start(num_cpus=1)
    assert skate.get(look.remote()) == [("<stdout>", "w"), ("<stderr>", "w")]


@pytest.mark.differs(inline="tasks run in the driver, and print as it does")
def test_log_to_driver_false_shows_nothing_of_workers(
    start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    start(num_cpus=1, log_to_driver=False)
    skate.get(say.remote("quiet"))
    skate.shutdown()
    assert capfd.readouterr() == ("", "")


@pytest.mark.differs(inline="the kill would end the driver")
@pytest.mark.differs(ray=OWN)
def test_the_last_words_of_a_killed_process_are_shown(
    start: Start, engine_name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    start(num_cpus=1)
    talker = Talker.remote()
    with pytest.raises(skate.exceptions.ActorDiedError):
        skate.get(talker.write_and_die.remote(b"no line end"))
    assert re.search(r"\(Talker pid=\d+\) no line end\n", printed(capfd))


@pytest.mark.differs(inline="C code prints to the driver's descriptor itself")
@pytest.mark.differs(ray=OWN)
def test_what_c_code_prints_is_shown(
    start: Start, engine_name: str, capfd: pytest.CaptureFixture[str]
) -> None:

    @skate.remote
    def call_c() -> None:
        import ctypes

        libc = ctypes.CDLL(None)
        libc.printf(b"from C\n")

    start(num_cpus=1)
    skate.get(call_c.remote())
    assert re.search(r"\(\w+ pid=\d+\) from C\n", printed(capfd))


@pytest.mark.differs(inline="tasks print to the driver's own closed output")
def test_a_driver_with_a_closed_output_goes_on(engine_name: str) -> None:
    text = f"""
import sys, skate
skate.init({engine_name!r})
@skate.remote
def chatter():
    for i in range(5000):
        print("chatter", i)
    return 7
sys.stdout.close()
assert skate.get(chatter.remote()) == 7
"""
    subprocess.run([sys.executable, "-c", text], timeout=60, check=True)
