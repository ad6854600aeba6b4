import signal
import subprocess
import sys

INTERRUPTED = """
import time
from skate.sim.deadline import StepDeadline, StepTimeout

deadline = StepDeadline(0.1, preemptive=True)
try:
    deadline.begin()
    try:
        time.sleep(60)
    finally:
        deadline.end()
except StepTimeout:
    deadline.end()
time.sleep(1.3)  # past the time at which the kernel's timer would have fired
print("alive")
"""

HUNG = """
import ctypes
from skate.sim.deadline import StepDeadline

StepDeadline(0.1, preemptive=True).begin()
while True:
    ctypes.PyDLL(None).sleep(60)  # keeps the GIL
"""


def start(code: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_python_code_is_interrupted_and_c_code_loses_its_process() -> None:
    with start(INTERRUPTED) as interrupted, start(HUNG) as hung:
        assert interrupted.communicate()[0] == "alive\n"
        assert hung.wait() == -signal.SIGALRM
