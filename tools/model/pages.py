"""Renders 23 pages of PDFs that Debian packages carry to $YOLO_CACHE/pages/{jpeg,png}: real pictures.

The packages are unpacked into a temporary folder, not installed: container images often drop /usr/share/doc.
"""

import gzip
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cache import PAGES

DOTS_PER_INCH = 80
FORMATS = {"jpeg": "jpg", "png": "png"}


@dataclass(frozen=True)
class Document:
    """Some pages of one PDF."""

    package: str
    member: str
    pages: range


DOCUMENTS = (
    Document("zlib1g-dev", "crc-doc.1.0.pdf.gz", range(1, 13)),
    Document("nettle-dev", "nettle.pdf.gz", range(30, 35)),
    Document("debian-policy", "policy.pdf.gz", range(1, 7)),
)


def name(document: Document, page: int, ending: str) -> str:
    """File name of a page."""
    return f"{document.member.split('.')[0]}-{page:02}.{ending}"


def expected() -> list[Path]:
    """All files that a complete run leaves."""
    return [
        PAGES / folder / name(document, page, ending)
        for folder, ending in FORMATS.items()
        for document in DOCUMENTS
        for page in document.pages
    ]


def apt_get(*arguments: str, cwd: Path | None = None) -> None:
    """Runs apt-get; refreshes its lists and tries again if it fails."""
    quiet = {
        "check": True,
        "stdout": subprocess.DEVNULL,
        "cwd": cwd,
        "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    }
    try:
        subprocess.run(["apt-get", "-qq", *arguments], stderr=subprocess.DEVNULL, **quiet)
    except subprocess.CalledProcessError:
        subprocess.run(["apt-get", "-qq", "update"], **quiet)
        subprocess.run(["apt-get", "-qq", *arguments], **quiet)


def unpack(document: Document, folder: Path) -> Path:
    """Fetches the package and returns its PDF."""
    apt_get("download", document.package, cwd=folder)
    (package,) = folder.glob(f"{document.package}_*.deb")
    subprocess.run(["dpkg-deb", "-x", package.name, document.package], cwd=folder, check=True)
    (member,) = (folder / document.package).rglob(document.member)
    pdf = folder / member.stem
    with gzip.open(member) as packed, pdf.open("wb") as plain:
        shutil.copyfileobj(packed, plain)
    return pdf


def render(document: Document, pdf: Path) -> None:
    """Writes every page in every format."""
    for folder, ending in FORMATS.items():
        (PAGES / folder).mkdir(parents=True, exist_ok=True)
        for page in document.pages:
            target = PAGES / folder / name(document, page, ending)
            options = ["-f", str(page), "-l", str(page), "-r", str(DOTS_PER_INCH), f"-{folder}", "-singlefile"]
            subprocess.run(["pdftoppm", *options, pdf, pdf.with_suffix("")], check=True)
            shutil.move(pdf.with_suffix(f".{ending}"), target)


def main() -> None:
    """Renders, unless every page is there."""
    if all(page.exists() for page in expected()):
        return
    if shutil.which("pdftoppm") is None:
        print("pages: install poppler-utils", flush=True)
        apt_get("install", "-y", "poppler-utils")
    with tempfile.TemporaryDirectory() as folder:
        # apt drops its rights for the download; without this it warns and goes on as root.
        Path(folder).chmod(0o777)
        for document in DOCUMENTS:
            print(f"pages: render {len(document.pages)} pages of {document.member} from {document.package}", flush=True)
            render(document, unpack(document, Path(folder)))


if __name__ == "__main__":
    main()
