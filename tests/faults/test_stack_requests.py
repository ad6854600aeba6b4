"""Whoever asks a process for its stacks may do so while its session ends."""

from __future__ import annotations

import pytest
from programs import run

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")


def test_stacks_may_be_asked_for_while_another_thread_ends_the_session() -> None:
    run(
        """
        import os, subprocess, sys, threading
        import skate
        from skate.engine.embedded.stacks import SIGNAL

        ASK = '''
        import os, sys, time
        try:
            while True:
                os.kill(int(sys.argv[1]), int(sys.argv[2]))
                time.sleep(0.001)
        except ProcessLookupError:
            pass
        '''

        def sessions():
            for _ in range(12):
                skate.init("embedded", num_cpus=1, object_store_memory=1 << 24)
                skate.shutdown()

        skate.init("embedded", num_cpus=1)
        skate.shutdown()  # the handler is there from now on
        large = bytearray(200 << 20)  # to copy the process takes longer
        whom = [str(os.getpid()), str(int(SIGNAL))]
        asks = subprocess.Popen([sys.executable, "-c", ASK, *whom])
        try:
            thread = threading.Thread(target=sessions)
            thread.start()
            thread.join()  # this thread gets the signals
        finally:
            asks.kill()
            asks.wait()
        """
    )
