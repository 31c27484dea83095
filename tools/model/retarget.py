"""Retargets the page-layout model to other input sizes and a dynamic batch by editing constants; no retraining.

A YOLOv8 head carries its input size in four places only: the shapes of its `Reshape`s, the table of anchor centres,
the table of anchor strides, and the declared input and output. Proof: the 1024 variant gives, for one picture, the
same bits as the original; anything else is an error.
"""

import sys

import numpy
import onnx
import onnxruntime
from onnx import numpy_helper

from cache import ORIGINAL, page_model, write_whole

ORIGINAL_SIDE_PX = 1024
SIDES_PX = (1024, 640, 320)
STRIDES_PX = (8, 16, 32)


def anchor_centres(side_px: int) -> numpy.ndarray:
    """Centres of the cells in strides, `[1, 2, anchors]` f32: x, then y; scale after scale, row by row."""
    scales = []
    for stride_px in STRIDES_PX:
        line = numpy.arange(side_px // stride_px, dtype=numpy.float32) + 0.5
        y, x = numpy.meshgrid(line, line, indexing="ij")
        scales.append(numpy.stack([x.ravel(), y.ravel()]))
    return numpy.concatenate(scales, axis=1)[None]


def anchor_strides(side_px: int) -> numpy.ndarray:
    """Stride of every anchor, `[1, anchors]` f32."""
    counts = [(side_px // stride_px) ** 2 for stride_px in STRIDES_PX]
    return numpy.repeat(numpy.array(STRIDES_PX, numpy.float32), counts)[None]


def constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Every constant by the name that other nodes use for it."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = node.attribute[0].t
    return found


def replace(tensor: onnx.TensorProto, values: numpy.ndarray) -> None:
    """Puts other values into a constant, under its old name."""
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def retarget_reshapes(graph: onnx.GraphProto, tensors: dict[str, onnx.TensorProto], anchors: int) -> None:
    """Batch 1 becomes "as it comes" (0), the anchor count becomes "the rest" (-1)."""
    for name in {node.input[1] for node in graph.node if node.op_type == "Reshape"}:
        shape = numpy_helper.to_array(tensors[name]).copy()
        if shape[0] == 1:
            shape[0] = 0
        if shape[-1] == anchors:
            shape[-1] = -1
        replace(tensors[name], shape)


def retarget_tables(tensors: dict[str, onnx.TensorProto], side_px: int) -> None:
    """Recomputes the anchor tables, which must be exactly the ones that we can derive."""
    tables = ((anchor_centres, 2), (anchor_strides, 1))
    for table, count_expected in tables:
        original = table(ORIGINAL_SIDE_PX)
        found = [t for t in tensors.values() if numpy.array_equal(numpy_helper.to_array(t), original)]
        if len(found) != count_expected:
            sys.exit(f"model: {len(found)} constants equal {table.__name__}, expected {count_expected}")
        for tensor in found:
            replace(tensor, table(side_px))


def retarget_declarations(model: onnx.ModelProto, side_px: int, anchors: int) -> None:
    """Input, output and metadata say what the model now is; inferred inner shapes are dropped."""
    for value, sizes in ((model.graph.input[0], (3, side_px, side_px)), (model.graph.output[0], (None, anchors))):
        batch, *rest = value.type.tensor_type.shape.dim
        batch.dim_param = "batch"
        for dim, size in zip(rest, sizes, strict=True):
            if size is not None:
                dim.dim_value = size
    del model.graph.value_info[:]
    for entry in model.metadata_props:
        if entry.key == "imgsz":
            entry.value = f"[{side_px}, {side_px}]"
        if entry.key == "args":
            entry.value = entry.value.replace("'dynamic': False", "'dynamic': True")


def retarget(side_px: int) -> onnx.ModelProto:
    """The original model with an input of `side_px` squared and any batch size."""
    model = onnx.load(ORIGINAL)
    tensors = constants(model.graph)
    anchors = anchor_strides(side_px).size
    retarget_reshapes(model.graph, tensors, anchor_strides(ORIGINAL_SIDE_PX).size)
    retarget_tables(tensors, side_px)
    retarget_declarations(model, side_px, anchors)
    onnx.checker.check_model(model)
    return model


def run(model: bytes, pictures: numpy.ndarray) -> numpy.ndarray:
    """One inference on one thread: the order of additions, and so the bits, are the same in every run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": pictures})[0]


def verify(variant: onnx.ModelProto) -> None:
    """Ends the program unless the 1024 variant gives the original's bits."""
    print(f"model: compare the {ORIGINAL_SIDE_PX} variant with the original, bit by bit", flush=True)
    shape = (1, 3, ORIGINAL_SIDE_PX, ORIGINAL_SIDE_PX)
    picture = numpy.random.default_rng(1).random(shape, dtype=numpy.float32)
    expected = run(ORIGINAL.read_bytes(), picture)
    actual = run(variant.SerializeToString(), picture)
    if expected.tobytes() != actual.tobytes():
        sys.exit(f"model: the retargeted model differs from the original by up to {numpy.abs(expected - actual).max()}")


def main() -> None:
    """Makes what is missing. The verified variant is written last, so its presence means that all is there."""
    if all(page_model(side_px).exists() for side_px in SIDES_PX):
        return
    for side_px in reversed(SIDES_PX):
        print(f"model: retarget to {side_px} x {side_px}, dynamic batch", flush=True)
        variant = retarget(side_px)
        if side_px == ORIGINAL_SIDE_PX:
            verify(variant)
        write_whole(page_model(side_px), lambda path, variant=variant: path.write_bytes(variant.SerializeToString()))


if __name__ == "__main__":
    main()
