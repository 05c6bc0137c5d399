from __future__ import annotations

import json
import subprocess
import sys

SPEAKS = """
import gc, logging, sys, threading, warnings
from shoal_engine.logs import set_up_logging
set_up_logging()
logging.getLogger("a").info("loading", extra={"phase": "weights", "done": 5})
warnings.warn("careful")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start(); thread.join()
class Noisy:
    def __del__(self): raise ValueError("in del")
Noisy(); gc.collect()
try:
    {}["x"]
except KeyError:
    logging.getLogger("a").exception("a request failed")
raise RuntimeError("the end\\nin two lines")
"""


def test_off_a_terminal_everything_is_one_json_object_per_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SPEAKS], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    entries = [json.loads(line) for line in done.stderr.splitlines()]
    assert [entry["level"] for entry in entries] == ["info", "warning", "error", "error", "error", "critical"]
    first = entries[0]
    assert (first["event"], first["phase"], first["done"]) == ("loading", "weights", 5)
    assert first["time"].endswith("Z")
    for entry, words in zip(
        entries[1:], ("careful", "ZeroDivision", "in del", "KeyError", "in two lines"), strict=True
    ):
        assert words in json.dumps(entry)
