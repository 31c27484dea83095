"""The OpenCV and numpy side of `benches/vision.rs`: a process that does one piece of work a line and says how long it took.

Input: `<threads> <repeats> <work> …`, where `threads` 0 is OpenCV's default and work one of
`letterbox <width> <height> <side>` (the synthetic picture), `input …` (the same to f32), `jpeg <file> <side>`, `tensor <side>`, `megapixel <page>`, or
`save <file> <work> …`, which keeps the result's bytes. Output: the median in seconds.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy

sys.path.append(str(Path(__file__).parents[1] / "fixtures"))
import fixtures  # noqa: E402
import formulas  # noqa: E402

DEFAULT_THREADS = cv2.getNumThreads()


def letterbox(width: int, height: int, side: int) -> Callable[[], numpy.ndarray]:
    """Pixels to planar u8."""
    picture = fixtures.picture(width, height)
    geometry = formulas.plan((width, height), (side, side))
    (left, top), (resized_width, resized_height) = geometry.pad, geometry.resized
    bottom, right = side - resized_height - top, side - resized_width - left
    grey = (formulas.PADDING,) * 3

    def work() -> numpy.ndarray:
        resized = cv2.resize(picture, geometry.resized, interpolation=cv2.INTER_LINEAR)
        padded = cv2.copyMakeBorder(resized, top, bottom, left, right, cv2.BORDER_CONSTANT, value=grey)
        return numpy.ascontiguousarray(padded.transpose(2, 0, 1))

    return work


def model_input(width: int, height: int, side: int) -> Callable[[], numpy.ndarray]:
    """Pixels to planar f32."""
    pixels = letterbox(width, height, side)
    return lambda: formulas.tensor(pixels())


def jpeg(file: str, side: int) -> Callable[[], numpy.ndarray]:
    """An encoded file to planar u8, RGB."""
    encoded = numpy.fromfile(file, numpy.uint8)

    def work() -> numpy.ndarray:
        bgr = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        geometry = formulas.plan((bgr.shape[1], bgr.shape[0]), (side, side))
        rgb = cv2.cvtColor(formulas.canvas(bgr, geometry), cv2.COLOR_BGR2RGB)
        return numpy.ascontiguousarray(rgb.transpose(2, 0, 1))

    return work


def tensor(side: int) -> Callable[[], numpy.ndarray]:
    """Planar u8 to f32."""
    planar = fixtures.picture(side, side).transpose(2, 0, 1).copy()
    return lambda: formulas.tensor(planar)


def megapixel(page: str) -> Callable[[], numpy.ndarray]:
    """A page, enlarged to a megapixel, to the bytes of a JPEG as cameras write it."""
    picture = cv2.imread(page)
    scale = (1e6 / (picture.shape[0] * picture.shape[1])) ** 0.5
    picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return lambda: cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]


WORK = {"letterbox": letterbox, "input": model_input, "jpeg": jpeg, "tensor": tensor, "megapixel": megapixel}


def prepared(words: list[str]) -> Callable[[], numpy.ndarray]:
    """The work that a line names."""
    arguments = [int(word) if word.isdigit() else word for word in words[1:]]
    return WORK[words[0]](*arguments)


def seconds(threads: int, repeats: int, work: Callable[[], numpy.ndarray]) -> float:
    """Median of `repeats`."""
    cv2.setNumThreads(threads or DEFAULT_THREADS)
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    """Answers line by line until the input ends. Inputs are made once."""
    made: dict[tuple[str, ...], Callable[[], numpy.ndarray]] = {}
    for line in sys.stdin:
        threads, repeats, *words = line.split()
        file = None
        if words[0] == "save":
            _, file, *words = words
        work = made.get(tuple(words)) or made.setdefault(tuple(words), prepared(words))
        if file:
            work().tofile(file)
        print(seconds(int(threads), int(repeats), work), flush=True)


if __name__ == "__main__":
    main()
