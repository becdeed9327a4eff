"""Small trained models that come with the package, and the published ones: imported, exported."""

from pathlib import Path

from minidiff.training import Description, Model, load_model, newest

from .diffusers_folder import write as export
from .importing import import_checkpoint

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The models that ship."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def load(path: Path | str, weights: str | None = None) -> tuple[Model, Description]:
    """A trained model by the folder of its run, or by the name of one that ships, such as ``digits``.

    Returns the model, in evaluation mode with averaged weights unless ``weights`` names others, and its description.
    Raises ValueError where there is neither.
    """
    holds_model = (Path(path) / "config.json").is_file() or newest(Path(path)) is not None
    if not holds_model and str(path) in names():
        path = FOLDER / str(path)
    elif not Path(path).exists():
        raise ValueError(f"there is no run {path}, and no model of that name ships: {', '.join(names())}.")
    return load_model(path, weights)
