"""The Makefile: one line says what is missing; an interrupted install is taken up again, a complete one is not."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Stands in for Python and for the pip and the programs of the .venv that it makes; each call leaves a line in the log.
STUB = """#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
case "$*" in
    *version_info*) [ -n "$OLD_PYTHON" ] || case "$*" in *"$MISSING_MODULE"*) ;; *) echo "$0" ;; esac ;;
    *"-m venv"*) mkdir -p .venv/bin; for name in python pip minidiff; do cp "$0" .venv/bin/$name; done ;;
    *"-m pip install"*) [ -z "$INTERRUPTED" ] || exit 1 ;;
    *--version*) echo pip ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    tree = tmp_path / "a clone"
    tree.mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tree)
    stub, log = tmp_path / "python", tmp_path / "log"
    stub.write_text(STUB)
    stub.chmod(0o755)

    def make(*arguments: str, **environment: str) -> tuple[int, str, list[str]]:
        log.write_text("")
        outer = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
        environment = outer | {"LOG": str(log), "MISSING_MODULE": "none", "NEEDS_GB": "0"} | environment
        command = ["make", "--no-print-directory", "-C", str(tree), *arguments]
        if not any(a.startswith("PYTHON=") for a in arguments):
            command.append(f"PYTHON={stub}")
        result = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)
        installs = [line for line in log.read_text().splitlines() if "pip install" in line or "minidiff" in line]
        return result.returncode, result.stdout + result.stderr, installs

    make.tree = tree
    return make


INSTALL, TRAIN = "python -m pip install -qq -e .", "minidiff train digits --out runs/digits --resume"


def test_help_lists_every_target(make):
    code, output, _ = make()
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    assert code == 0 and set(targets) == {"help", "demo", "test", "chapters", "book", "lab", "clean"}
    assert [line.split()[1] for line in output.splitlines()] == targets


@pytest.mark.parametrize(
    ("arguments", "environment", "complaint"),
    [
        (["PYTHON=/no/such/python"], {}, "needs Python 3.11 or newer; /no/such/python is not: install it"),
        ([], {"OLD_PYTHON": "1"}, "needs Python 3.11 or newer"),
        ([], {"MISSING_MODULE": "ensurepip"}, "cannot make virtual environments: install its venv module"),
        ([], {"NEEDS_GB": "99999999"}, "needs 99999999 GB of free disk"),
    ],
)
def test_one_line_says_what_is_missing(make, arguments, environment, complaint):
    code, output, installs = make("demo", *arguments, **environment)
    assert code != 0 and complaint in output and len(output.splitlines()) == 1
    assert installs == [] and not (make.tree / ".venv").exists()


def test_an_interrupted_install_is_taken_up_again(make):
    code, _, installs = make("demo", INTERRUPTED="1")
    assert code != 0 and installs == [INSTALL]

    site = make.tree / ".venv/lib/python3.11/site-packages"
    for name, file in (("whole", "INSTALLER"), ("half", "METADATA")):
        (site / f"{name}-1.0.dist-info").mkdir(parents=True)
        (site / f"{name}-1.0.dist-info" / file).touch()
    code, _, installs = make("demo")
    assert code == 0 and installs == [INSTALL, TRAIN]
    assert [path.name for path in site.iterdir()] == ["whole-1.0.dist-info"]

    code, _, installs = make("demo")
    assert code == 0 and installs == [TRAIN]

    os.utime(make.tree / "pyproject.toml", (4e9, 4e9))
    assert make("demo")[2] == [INSTALL, TRAIN]


def test_a_venv_that_does_not_start_is_made_anew(make):
    assert make("demo")[0] == 0
    (make.tree / ".venv/bin/pip").write_text("#!/no/such/python\n")
    code, _, installs = make("demo")
    assert code == 0 and installs == [INSTALL, TRAIN]


def test_disk_is_not_asked_for_where_torch_is_installed(make):
    assert make("demo")[0] == 0
    info = make.tree / ".venv/lib/python3.11/site-packages/torch-2.14.1+cpu.dist-info"
    info.mkdir(parents=True)
    (info / "INSTALLER").touch()
    os.utime(make.tree / "pyproject.toml", (4e9, 4e9))
    assert make("demo", NEEDS_GB="99999999")[0] == 0


def test_the_machine_that_checks_calls_make_test():
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "make test"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
