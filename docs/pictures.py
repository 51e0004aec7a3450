"""The pictures of the front page, taken from the notebooks as they were executed: no copy of them lies in git."""

import base64
import json
import pathlib

NOTEBOOKS = pathlib.Path(__file__).resolve().parent.parent / "notebooks"


def write(folder):
    """Write every notebook's figures as NAME_1.png, NAME_2.png, ..."""
    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        for number, picture in enumerate(figures(notebook), start=1):
            (folder / f"{notebook.stem}_{number}.png").write_bytes(picture)


def figures(notebook):
    """The PNG figures among a notebook's outputs, in their order."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    return [base64.b64decode(data["image/png"]) for data in outputs if "image/png" in data]
