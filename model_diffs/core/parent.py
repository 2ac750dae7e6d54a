"""A process ends with the one that started it, so that nothing writes after a killed pipeline.

The pipeline names itself to its children in MODEL_DIFFS_PIPELINE. Each of them, and each process
that they start in turn, calls `end_with_parent` first.
"""

import os
import signal
import socket
import sys
import threading
import time

PIPELINE = "MODEL_DIFFS_PIPELINE"
"""Set by the pipeline: `process@host` of itself."""
SECONDS_BETWEEN_LOOKS = 0.5
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def process_lives(pid: int) -> bool:
    """Whether there is a process of that number that has not ended."""
    import psutil

    try:
        # A killed process that nobody has waited for yet still has its number.
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # another user's
        return True


def here(pid: int) -> str:
    """`process@host`: how a process is named to others."""
    return f"{pid}@{socket.gethostname()}"


def pid_of(name: str) -> int | None:
    """The number in a name that `here` gave on this machine; None for any other text."""
    pid, _, host = name.strip().partition("@")
    known = pid.isascii() and pid.isdigit() and len(pid) < 10 and host == socket.gethostname()
    return int(pid) if known and int(pid) > 0 else None


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _watch(started: int, parent: int) -> None:
    while os.getppid() == parent and process_lives(started):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    _end()


def end_with_parent(started: int | None = None) -> None:
    """End this process, at once and by SIGKILL, when the one that it works for has ended.

    `started`: number of that process; the pipeline, where None. Without either nothing is done.
    A launcher may stand between the two (`accelerate launch`): its end counts as well.
    """
    started = started or pid_of(os.environ.get(PIPELINE, ""))
    if started is None:
        return
    parent = os.getppid()
    if sys.platform == "linux":
        import ctypes

        # The kernel ends this process together with its parent.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent or not (parent == started or process_lives(started)):
        _end()  # the other ended before this was asked for
    if sys.platform != "linux" or parent != started:
        threading.Thread(target=_watch, args=(started, parent), daemon=True).start()
