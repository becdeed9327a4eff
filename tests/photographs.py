"""A folder as people have them: sizes, modes and formats of all kinds, wrong names, broken files, other files."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

MODES = ("RGB", "L", "P", "RGBA", "LA", "1", "I;16", "CMYK")  # of Pillow
CORRUPT = ["china/cut.png", "china/empty.jpg", "flower/cut.jpg", "flower/text.png"]  # in the order of names
OTHER = ["README.txt", "flower/notes"]


def photographs(folder: Path, n: int = 100) -> Path:
    """n files that are or should be images, in the classes china and flower, and two that are something else."""
    rng = np.random.default_rng(2006)
    photos = load_sample_images().images
    for k in range(n - len(CORRUPT)):
        top, left = rng.integers(0, 200, 2)
        height, width = rng.integers(10, 120, 2)
        image = Image.fromarray(photos[k % 2][top : top + height, left : left + width])
        mode, kind = MODES[k % len(MODES)], ("PNG", "JPEG", "GIF", "BMP")[k // len(MODES) % 4]
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        else:
            image = image.convert(mode)
        kind = {"CMYK": "TIFF", "RGBA": "PNG", "LA": "PNG", "I;16": "PNG", "P": "PNG"}.get(mode, kind)
        suffix = (kind.lower(), "png", "jpeg", "dat")[k % 4]  # three of four by chance
        path = folder / ("china", "flower")[k % 2] / f"deeper-{k % 3}" / f"{k:03}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, kind)
    whole = photos[0][:90, :120]
    for name, kind in (("china/cut.png", "PNG"), ("flower/cut.jpg", "JPEG")):
        Image.fromarray(whole).save(folder / name, kind)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    (folder / "china" / "empty.jpg").write_bytes(b"")
    (folder / "flower" / "text.png").write_text("no image at all")
    (folder / "README.txt").write_text("my photographs")
    (folder / "flower" / "notes").write_text("flowers")
    (folder / ".hidden.png").write_text("left by some program")
    return folder
