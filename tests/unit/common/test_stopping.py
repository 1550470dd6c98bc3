"""SIGTERM as a request."""

import os
import signal
import subprocess
import sys
import threading

from free2ds_common.stopping import stop_requests


def test_a_request_is_seen_and_the_handler_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as stopping:
        assert not stopping()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_signal_ends_the_process():
    code = (
        "import os, signal\n"
        "from free2ds_common.stopping import stop_requests\n"
        "with stop_requests():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('asked', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('never')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.stdout, ended.returncode) == ("asked\n", -signal.SIGTERM)


def test_outside_the_main_thread_nothing_is_taken():
    seen = []

    def work():
        with stop_requests() as stopping:
            seen.append((stopping(), signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
