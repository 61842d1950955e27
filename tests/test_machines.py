"""What is said of a machine, and one process at a time."""

import os
import subprocess
import sys

import pytest

from lcfuse_core import machines


@pytest.mark.skipif(os.name != "posix", reason="locks are of POSIX")
def test_a_child_keeps_others_out_when_its_parent_was_killed(tmp_path):
    """As a run goes on when the worker that began it dies: nobody may begin it a second time meanwhile."""
    import fcntl

    lock = tmp_path / "deep" / ".lock"
    parent = (
        "import os, subprocess, sys\nfrom pathlib import Path\nfrom lcfuse_core import machines\n"
        "with machines.alone(Path(sys.argv[1])) as held:\n"
        "    subprocess.Popen(['cat'], pass_fds=held)\n"
        "    os._exit(0)"
    )
    began = subprocess.Popen([sys.executable, "-c", parent, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    began.wait()
    with lock.open("a") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        began.stdin.close()  # what the child waits for: it ends
        assert began.stdout.read() == b""
        with machines.alone(lock):
            pass
