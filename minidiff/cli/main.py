"""``minidiff COMMAND …``: bad input is one sentence and exit code 2, with nothing written."""

import importlib
import sys

COMMANDS = {
    "prepare": "your images as a data set: minidiff prepare photos runs/data/photos64 --size 64",
    "train": "train a recipe: minidiff train digits",
    "sample": "draw samples: minidiff sample runs/digits -n 64 --seed 0",
    "interpolate": "from one sample or image to another: minidiff interpolate runs/digits --seeds 3 7",
    "inpaint": "fill a hole in an image: minidiff inpaint runs/digits IMAGE --mask MASK.png",
    "likelihood": "bits per dimension of held-out data: minidiff likelihood runs/digits",
    "evaluate": "FID, KID, Inception Score, precision and recall: minidiff evaluate runs/digits -n 1000",
    "plot": "loss, learning rate and gradient of runs: minidiff plot runs/digits --out plots.png",
    "report": "runs side by side on one page: minidiff report runs/digits --out report",
    "import": "a published checkpoint as a run: minidiff import FILE --as adm-imagenet64 runs/adm",
    "export": "a run as a folder of diffusers: minidiff export runs/ddpm-cifar10 OUT",
    "recipes": "list what can be trained",
    "info": "what a recipe or a run is, and what it costs to train it: minidiff info adm-imagenet64",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: minidiff COMMAND [options]   (minidiff COMMAND --help tells more)\n")
        print("\n".join(f"  {command:<12}{line}" for command, line in COMMANDS.items()))
        return 0
    if name not in COMMANDS:
        return _refuse(f"there is no command {name!r}. Known are: {', '.join(COMMANDS)}.")
    module = f"minidiff.cli.{'import_' if name == 'import' else name}"  # import is a word of Python's
    command = importlib.import_module(module)  # late, so that one command does not load another's needs
    try:
        command.run(rest)
    except ValueError as error:
        return _refuse(str(error))
    except (OSError, FloatingPointError) as error:
        print(f"minidiff {name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nminidiff {name}: stopped.", file=sys.stderr)
        return 130
    return 0


def _refuse(message: str) -> int:
    print(f"minidiff: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
