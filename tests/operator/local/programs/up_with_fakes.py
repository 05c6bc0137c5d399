"""`shoal up` with a fake engine and router, and with waits short enough for tests.

up_with_fakes.py SCRIPT.json -f MANIFEST ...
"""

from __future__ import annotations

import sys
from pathlib import Path

from shoal_operator.local.plan import Programs
from shoal_operator.local.restart_policy import RestartPolicy
from shoal_operator.local.session import SessionSettings
from shoal_operator.local.supervisor import Patience
from shoal_operator.local.up import main

HERE = Path(__file__).parent

if __name__ == "__main__":
    script, *arguments = sys.argv[1:]
    programs = Programs(
        engine=(sys.executable, str(HERE / "fake_engine.py"), script),
        router=(sys.executable, str(HERE / "fake_router.py")),
    )
    settings = SessionSettings(
        policy=RestartPolicy(first_delay_s=0.05),
        patience=Patience(ready_period_s=0.02, stall_s=2.0),
        stop_margin_s=0.5,
    )
    sys.exit(main(arguments, programs, settings))
