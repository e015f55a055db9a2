"""How many inputs are generated: few in `make test`, thousands with DPDMD_FUZZ=1, as `make fuzz` sets it.

In `make test` inputs follow from the test's name, so that a failure is one of the change under test. `make fuzz` draws
others each time, prints how a failure is repeated, and gives no input more than ten seconds of a machine that does
nothing else.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

THOROUGH = os.environ.get("DPDMD_FUZZ", "") not in ("", "0")
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]

busy = max(1, os.getloadavg()[0] / (os.cpu_count() or 1))  # how many processes share a core

settings.register_profile(
    "dpdmd",
    max_examples=300 if THOROUGH else 12,
    deadline=timedelta(seconds=10 * busy) if THOROUGH else None,
    derandomize=not THOROUGH,
    database=None,
    suppress_health_check=CHECKS,
    print_blob=True,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],  # explanations take minutes where an input takes a second
)
settings.load_profile("dpdmd")


@pytest.fixture
def dpdmd(monkeypatch, capsys):
    """Call `dpdmd ARGUMENTS` in this process; returns exit code, stdout and stderr."""
    from dpdmd import cli

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["dpdmd", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def environment():
    """Of a process that finds this package."""
    import dpdmd

    return os.environ | {"PYTHONPATH": str(Path(dpdmd.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
