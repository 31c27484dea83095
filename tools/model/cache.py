"""Paths under $YOLO_CACHE, and files that appear whole or not at all."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

CACHE = Path(os.environ["YOLO_CACHE"])
MODELS = CACHE / "models"
PAGES = CACHE / "pages"
ONNXRUNTIME = CACHE / "onnxruntime" / "libonnxruntime.so"
ORIGINAL = MODELS / "yolov8n-doclaynet.onnx"


def page_model(side_px: int) -> Path:
    """The page-layout model with an input of `side_px` squared and a dynamic batch."""
    return MODELS / f"page-layout-{side_px}.onnx"


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file beside `path`, then renames it: an interrupted run leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    write(partial)
    os.replace(partial, path)
