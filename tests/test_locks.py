"""Locks between processes, which must not need what only Unix has."""

import subprocess
import sys
import time

import pytest
from filelock import Timeout

from rag.files import lock_file, one_process

HIDE = """
import importlib, pkgutil, sys
sys.modules["fcntl"] = None  # as on Windows
import rag
for module in pkgutil.walk_packages(rag.__path__, "rag."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name != "gradio":  # an extra
                raise
"""


@pytest.mark.slow
def test_everything_imports_without_fcntl():
    done = subprocess.run([sys.executable, "-c", HIDE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_lock_goes_with_its_process_however_it_ends(tmp_path):
    path = tmp_path / ".lock"
    script = f"""
import time
from rag.files import lock_file
lock = lock_file({str(path)!r})
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(Timeout):
        lock_file(path, wait=False).acquire()
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with lock_file(path, wait=False):
        pass


def test_one_process_waits_for_the_other(tmp_path):
    script = f"""
import time
from rag.files import one_process
with one_process({str(tmp_path / "cache")!r}):
    print("held", flush=True)
    time.sleep(0.5)
    open({str(tmp_path / "cache")!r}, "w").write("made")
"""
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    start = time.perf_counter()
    with one_process(tmp_path / "cache"):
        assert (tmp_path / "cache").read_text() == "made"
    assert time.perf_counter() - start > 0.2
    holder.wait()
    holder.stdout.close()
