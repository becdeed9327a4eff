"""``import minidiff`` stays light: what only pictures, data or the command line need is loaded when they are used."""

import subprocess
import sys

HEAVY = {"matplotlib", "sklearn", "scipy", "pandas", "tyro", "IPython", "mlxtend", "datasets", "torchvision"}


def test_import_loads_nothing_heavy():
    script = "import sys, torch; before = set(sys.modules); import minidiff; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "minidiff" in loaded
    assert HEAVY & {name.split(".")[0] for name in loaded} == set()
