"""Small copies of the page pictures for the emulated service: $YOLO_CACHE/pages/thumbnails/*.jpg.

An emulated engine does not look at the pixels, but its server still decodes every picture; whole pages at the demo's
rates would take the CPU from the service beside it. Runs in the venv of `make pages`; quiet if every copy is there.
"""

import os
import pathlib

import cv2

HEIGHT_PX = 96

PAGES = pathlib.Path(os.environ["YOLO_CACHE"]) / "pages"
SMALL = PAGES / "thumbnails"


def main() -> None:
    """Writes the copies that are missing."""
    SMALL.mkdir(exist_ok=True)
    missing = [page for page in sorted((PAGES / "jpeg").glob("*.jpg")) if not (SMALL / page.name).exists()]
    for page in missing:
        picture = cv2.imread(str(page))
        width_px = round(picture.shape[1] * HEIGHT_PX / picture.shape[0])
        small = cv2.resize(picture, (width_px, HEIGHT_PX), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(SMALL / page.name), small)
    if missing:
        print(f"pages: {len(missing)} thumbnails", flush=True)


main()
