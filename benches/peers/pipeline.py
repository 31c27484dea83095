"""The work of one request, as a careful Python service does it: the same for every peer that does not bring its own.

Environment: `YOLO_MODEL` (ONNX file), `YOLO_SIDE_PX` (of its input), `YOLO_PORT`; the peers listen on 127.0.0.1.
"""

import ast
import os

import cv2
import numpy
import onnxruntime

WORKERS = 2
CONFIDENCE_MIN = 0.25
IOU_MAX = 0.7
DETECTIONS_MAX = 300
PADDING = 114

# One thread a worker: a pool of threads in each of two workers on two cores only makes them wait for each other.
cv2.setNumThreads(1)


def port() -> int:
    """Where the driver wants the service."""
    return int(os.environ["YOLO_PORT"])


def side_px() -> int:
    """Width and height of the model's input."""
    return int(os.environ["YOLO_SIDE_PX"])


class Pipeline:
    """A session of one thread that does not spin, with OpenCV before it and OpenCV's suppression behind it."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            os.environ["YOLO_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.names = ast.literal_eval(metadata["names"])
        self.side_px = side_px()
        self(cv2.imencode(".jpg", numpy.zeros((64, 64, 3), numpy.uint8))[1].tobytes())

    def __call__(self, picture: bytes) -> dict:
        """Detections in a JPEG file."""
        bgr = cv2.imdecode(numpy.frombuffer(picture, numpy.uint8), cv2.IMREAD_COLOR)
        tensor, scale, left, top = self.letterbox(bgr)
        rows = self.session.run(None, {"images": tensor})[0][0].T
        return {"detections": self.detections(rows, scale, (left, top), bgr.shape)}

    def letterbox(self, bgr: numpy.ndarray) -> tuple[numpy.ndarray, float, int, int]:
        """`[1, 3, side, side]` f32 RGB in 0..1, then the scale and the padding that were applied."""
        height, width = bgr.shape[:2]
        scale = min(self.side_px / height, self.side_px / width)
        new_width, new_height = round(width * scale), round(height * scale)
        left, top = (self.side_px - new_width) // 2, (self.side_px - new_height) // 2
        right, bottom = self.side_px - new_width - left, self.side_px - new_height - top
        resized = cv2.resize(bgr, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        padded = cv2.copyMakeBorder(
            resized, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(PADDING, PADDING, PADDING)
        )
        planar = padded[:, :, ::-1].transpose(2, 0, 1)
        return numpy.ascontiguousarray(planar, numpy.float32)[None] / 255.0, scale, left, top

    def detections(self, rows: numpy.ndarray, scale: float, padding: tuple[int, int], shape: tuple) -> list[dict]:
        """Threshold, suppression by class, back to the picture; `rows` is `[anchors, 4 + classes]`."""
        scores = rows[:, 4:].max(axis=1)
        rows, scores = rows[scores > CONFIDENCE_MIN], scores[scores > CONFIDENCE_MIN]
        if len(rows) == 0:
            return []
        classes = rows[:, 4:].argmax(axis=1)
        boxes = numpy.concatenate([rows[:, :2] - rows[:, 2:4] / 2, rows[:, 2:4]], axis=1)
        kept = cv2.dnn.NMSBoxesBatched(boxes, scores, classes, CONFIDENCE_MIN, IOU_MAX)[:DETECTIONS_MAX]
        corners = numpy.concatenate([boxes[kept, :2], boxes[kept, :2] + boxes[kept, 2:]], axis=1)
        corners = (corners - numpy.tile(padding, 2)) / scale
        corners = corners.clip(0, [shape[1], shape[0], shape[1], shape[0]])
        return [
            {
                "name": self.names[int(classes[index])],
                "class": int(classes[index]),
                "confidence": round(float(scores[index]), 5),
                "box": dict(zip(("x1", "y1", "x2", "y2"), corner.round(5).tolist(), strict=True)),
            }
            for index, corner in zip(kept, corners, strict=True)
        ]
