"""Run chapters again and store their outputs: ``python book/execute.py [02_ddpm ...]``, all of them if none is named.

The ``.py`` of a pair is the source; the ``.ipynb`` is written from it, whole and only if every cell ran without an
error and without a word on stderr. A chapter whose cells are deterministic comes out byte for byte as it was.
"""

import argparse
import base64
import hashlib
import os
import re
import struct
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from jupytext.config import load_jupytext_config
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

CHAPTERS = Path(__file__).resolve().parents[1] / "chapters"
ANSI = re.compile(r"\x1b\[[\d;]*m")


class Refused(Exception):
    """A chapter ran, and left something that must not be stored."""


def find(name: str) -> Path:
    """Return the source of the chapter called ``02``, ``02_ddpm``, ``02_ddpm.ipynb`` or given as a path."""
    path = Path(name).with_suffix(".py")
    if path.is_file():
        return path.resolve()
    found = sorted(CHAPTERS.glob(f"{path.stem}*.py"))
    if len(found) != 1:
        raise SystemExit(f"no chapter {name!r}; there are: {', '.join(p.stem for p in sources())}")
    return found[0]


def sources() -> list[Path]:
    return sorted(CHAPTERS.glob("[0-9]*.py"))


def read(path: Path) -> nbformat.NotebookNode:
    """Read a chapter's source; put the file into the form that its notebook gives back, so that the two are equal."""
    text, config = path.read_text(encoding="utf-8"), load_jupytext_config(str(path))
    notebook = jupytext.reads(text, fmt="py:percent", config=config)
    if "kernelspec" not in notebook.metadata:
        filters = ("cell_metadata_filter", "notebook_metadata_filter")
        notebook.metadata = {
            "jupytext": {name: getattr(config, name) for name in filters},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        }
    stored = jupytext.reads(jupytext.writes(notebook, fmt="ipynb"), fmt="ipynb")
    canonical = jupytext.writes(stored, fmt="py:percent")
    if canonical != text:
        write(path, canonical)
        print(f"{path.stem}: put the source into jupytext's form", flush=True)
    return notebook


def write(path: Path, text: str) -> None:
    """Replace a file at once, or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def execute(notebook: nbformat.NotebookNode, folder: Path, timeout: int) -> None:
    """Run every cell in a fresh kernel, as nbval and a reader will."""
    NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=timeout,
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],  # not a note for every kernel about unencrypted sockets
        resources={"metadata": {"path": str(folder)}},
    ).execute()


def settle(notebook: nbformat.NotebookNode) -> None:
    """Make what is stored depend on the cells alone: ids, metadata, and the program's name inside of each PNG."""
    notebook.metadata = {key: value for key, value in notebook.metadata.items() if key in ("kernelspec", "jupytext")}
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\0{cell.source}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                raise Refused(f"this cell wrote to stderr:\n\n{cell.source}\n\n{output.text}")
            if "image/png" in output.get("data", {}):
                picture = strip_png(base64.b64decode(output.data["image/png"]))
                output.data["image/png"] = base64.b64encode(picture).decode()
    nbformat.validate(notebook)


def strip_png(png: bytes) -> bytes:
    """Drop the text chunks of a PNG: they name the version of matplotlib, and nothing that can be seen."""
    kept, at = [png[:8]], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] not in (b"tEXt", b"iTXt", b"zTXt", b"tIME"):
            kept.append(png[at : at + 12 + length])
        at += 12 + length
    return b"".join(kept)


def run(path: Path, timeout: int) -> None:
    """Execute one chapter and store it."""
    notebook, start = read(path), time.perf_counter()
    execute(notebook, path.parent, timeout)
    settle(notebook)
    text, target = jupytext.writes(notebook, fmt="ipynb") + "\n", path.with_suffix(".ipynb")
    unchanged = target.exists() and target.read_text(encoding="utf-8") == text
    if not unchanged:
        write(target, text)
    seconds, megabytes = time.perf_counter() - start, len(text.encode()) / 1e6
    print(f"{path.stem}: {seconds:.0f} s, {megabytes:.2f} MB, {'unchanged' if unchanged else 'stored'}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run chapters again and store their outputs.")
    parser.add_argument("chapters", nargs="*", help="names or paths, for example 02_ddpm (default: all)")
    parser.add_argument("--timeout", type=int, default=600, help="seconds that one cell may take (default: 600)")
    options = parser.parse_args(arguments)
    os.environ["PYTHONHASHSEED"] = "0"
    os.environ.pop("MPLBACKEND", None)  # or figures would not reach the notebook
    failed = 0
    for path in [find(name) for name in options.chapters] or sources():
        try:
            run(path, options.timeout)
        except (CellExecutionError, CellTimeoutError, DeadKernelError, Refused) as error:
            failed += 1
            print(f"{path.stem}: FAILED, nothing stored\n{ANSI.sub('', str(error))}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
