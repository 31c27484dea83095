"""Triton's public clients against a running server, unchanged: over REST and over gRPC.

Usage: oip.py <http host:port> <grpc host:port> <model file>
The answers are compared with those of /predict, and the model's own outputs with ONNX Runtime's on the same tensors.
"""

import json
import queue
import sys
import urllib.request

import cv2
import numpy as np
import onnxruntime
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException

HTTP, GRPC, MODEL_FILE = sys.argv[1:]
MODEL = MODEL_FILE.rsplit("/", 1)[-1].removesuffix(".onnx")
OUTPUTS = ["num_detections", "boxes", "scores", "classes"]


def png(colour, width=64, height=48):
    """A picture of one RGB colour, as a PNG file."""
    pixels = np.full((height, width, 3), colour[::-1], np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


FILES = [png((250, 4, 4)), png((4, 250, 4), 96, 96), png((4, 4, 250), 200, 30)]


def predict(file, query=""):
    request = urllib.request.Request(f"http://{HTTP}/predict{query}", file, {"Content-Type": "image/png"})
    return json.load(urllib.request.urlopen(request))["detections"]


def image(module, files):
    tensor = module.InferInput("image", [len(files)], "BYTES")
    tensor.set_data_from_numpy(np.array(files, dtype=object))
    return tensor


def pictures(module, array, datatype, **how):
    tensor = module.InferInput("images", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, **how)
    return tensor


def same_as_predict(result, files, query=""):
    counts, boxes, scores, classes = (result.as_numpy(name) for name in OUTPUTS)
    expected = [predict(file, query) for file in files]
    most = max(len(detections) for detections in expected)
    shapes = [(len(files), 1), (len(files), most, 4), (len(files), most), (len(files), most)]
    assert [tensor.shape for tensor in (counts, boxes, scores, classes)] == shapes, shapes
    for index, detections in enumerate(expected):
        count = counts[index, 0]
        assert count == len(detections)
        assert list(classes[index, :count]) == [detection["class"] for detection in detections]
        np.testing.assert_allclose(scores[index, :count], [detection["confidence"] for detection in detections], atol=1e-5)
        edges = [[detection["box"][edge] for edge in ("x1", "y1", "x2", "y2")] for detection in detections]
        np.testing.assert_allclose(boxes[index, :count].reshape(-1, 4), np.reshape(edges, (-1, 4)), atol=1e-4)
        assert not boxes[index, count:].any() and not scores[index, count:].any(), "padded with zeros"


def refused(call, *words):
    """The call fails, and its message says why."""
    try:
        call()
    except InferenceServerException as error:
        assert all(word in error.message() for word in words), error
        return
    raise AssertionError(f"not refused: {words}")


def check_both(client, module):
    """What both transports promise."""
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(MODEL) and not client.is_model_ready("another")
    infer = lambda *arguments, **options: client.infer(MODEL, *arguments, **options)

    same_as_predict(infer([image(module, FILES[:1])]), FILES[:1])
    same_as_predict(infer([image(module, FILES)], parameters={"conf": 0.0}), FILES, "?conf=0")
    nothing = infer([image(module, FILES)], parameters={"conf": 1.0})
    assert nothing.as_numpy("boxes").shape == (3, 0, 4) and not nothing.as_numpy("num_detections").any()
    wanted = [module.InferRequestedOutput("scores"), module.InferRequestedOutput("num_detections")]
    some = infer([image(module, FILES)], outputs=wanted, request_id="mine")
    assert some.as_numpy("scores").shape[0] == 3 and some.as_numpy("boxes") is None
    infer([image(module, FILES[:1])], timeout=20_000_000)

    refused(lambda: client.infer("another", [image(module, FILES)]), "another", MODEL)
    refused(lambda: client.infer(MODEL, [image(module, FILES)], model_version="7"), "version 7")
    refused(lambda: infer([image(module, FILES)], parameters={"confidence": 0.5}), "confidence")
    refused(lambda: infer([image(module, FILES)], parameters={"conf": 2.0}), "conf")
    refused(lambda: infer([image(module, FILES)], outputs=[module.InferRequestedOutput("masks")]), "masks", "boxes")
    refused(lambda: infer([image(module, FILES[:2] + [b"no picture"])]), "image 2")
    refused(lambda: infer([image(module, [FILES[0]] * 65)]), "65")


def raw_outputs(client, module):
    """`images` is answered with what ONNX Runtime makes of the same tensor; returns the tensor and the outputs' names."""
    session = onnxruntime.InferenceSession(MODEL_FILE, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    levels = np.random.default_rng(7).integers(0, 256, (2, 3, 64, 64), np.uint8)
    numbers = np.random.default_rng(8).random((3, 3, 64, 64), np.float32)
    for array, datatype, tensor in [(levels, "UINT8", levels / np.float32(255)), (numbers, "FP32", numbers)]:
        result = client.infer(MODEL, [pictures(module, array, datatype)])
        for name, expected in zip(names, session.run(names, {session.get_inputs()[0].name: tensor})):
            assert expected.std() > 0, "a constant would prove nothing"
            np.testing.assert_allclose(result.as_numpy(name), expected, rtol=1e-5, atol=1e-5)
    refused(lambda: client.infer(MODEL, [pictures(module, numbers[:, :, :32], "FP32")]), "64")
    refused(lambda: client.infer(MODEL, [pictures(module, numbers.astype(np.float64), "FP64")]), "FP64")
    refused(lambda: client.infer(MODEL, [image(module, FILES), pictures(module, numbers, "FP32")]), "one input")
    boxes = [module.InferRequestedOutput("boxes")]
    refused(lambda: client.infer(MODEL, [pictures(module, numbers, "FP32")], outputs=boxes), "boxes", names[0])
    return numbers, names


def compressed(client):
    """Compressed both ways, the answer is the same."""
    tensor = pictures(http_client, np.random.default_rng(9).random((4, 3, 64, 64), np.float32), "FP32")
    plain = client.infer(MODEL, [tensor]).as_numpy("output0")
    for algorithm in ("gzip", "deflate"):
        how = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
        result = client.infer(MODEL, [tensor], **how)
        np.testing.assert_array_equal(result.as_numpy("output0"), plain)
        same_as_predict(client.infer(MODEL, [image(http_client, FILES)], **how), FILES)


def check_http():
    client = http_client.InferenceServerClient(HTTP)
    check_both(client, http_client)
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    compressed(client)
    metadata = client.get_model_metadata(MODEL)
    assert metadata["platform"] == "onnx_onnxv1" and metadata["name"] == MODEL
    assert metadata["inputs"] == [
        {"name": "image", "datatype": "BYTES", "shape": [-1]},
        {"name": "images", "datatype": "FP32", "shape": [-1, 3, 64, 64]},
    ]
    assert [tensor["name"] for tensor in metadata["outputs"]] == [*OUTPUTS, "output0"]
    assert metadata["outputs"][-1]["shape"] == [-1, 7, 84]
    assert client.is_model_ready(MODEL, metadata["versions"][0])

    text = http_client.InferRequestedOutput("boxes", binary_data=False)
    mixed = client.infer(MODEL, [image(http_client, FILES)], outputs=[http_client.InferRequestedOutput("scores"), text])
    whole = client.infer(MODEL, [image(http_client, FILES)])
    for name in ("scores", "boxes"):
        np.testing.assert_array_equal(mixed.as_numpy(name), whole.as_numpy(name))

    numbers, names = raw_outputs(client, http_client)
    binary = client.infer(MODEL, [pictures(http_client, numbers, "FP32")]).as_numpy(names[0])
    texts = [http_client.InferRequestedOutput(name, binary_data=False) for name in names]
    text = client.infer(MODEL, [pictures(http_client, numbers, "FP32", binary_data=False)], outputs=texts)
    np.testing.assert_array_equal(text.as_numpy(names[0]), binary)

    assert client.get_inference_statistics() == client.get_inference_statistics(MODEL)
    statistics = client.get_inference_statistics(MODEL)["model_stats"][0]
    assert statistics["inference_count"] >= statistics["execution_count"] > 0
    config = client.get_model_config(MODEL)
    assert config["input"][0] == {"name": "image", "data_type": "TYPE_STRING", "dims": [-1]}
    index = client.get_model_repository_index()
    assert [(model["name"], model["state"]) for model in index] == [(MODEL, "READY")]
    pending = [client.async_infer(MODEL, [image(http_client, FILES)]) for _ in range(8)]
    for request in pending:
        same_as_predict(request.get_result(), FILES)


def check_grpc():
    client = grpc_client.InferenceServerClient(GRPC)
    check_both(client, grpc_client)
    assert client.get_server_metadata().name == "yolo-server"
    metadata = client.get_model_metadata(MODEL)
    assert metadata.platform == "onnx_onnxv1" and [tensor.name for tensor in metadata.inputs] == ["image", "images"]
    raw_outputs(client, grpc_client)

    statistics = client.get_inference_statistics(MODEL).model_stats[0]
    assert client.get_inference_statistics().model_stats[0].name == statistics.name == MODEL
    assert statistics.inference_count >= statistics.execution_count > 0
    assert sum(batch.compute_infer.count for batch in statistics.batch_stats) == statistics.execution_count
    assert statistics.inference_stats.compute_infer.ns > 0
    config = client.get_model_config(MODEL, as_json=True)["config"]
    assert config["input"][0] == {"name": "image", "data_type": "TYPE_STRING", "dims": ["-1"]}, config
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_CPU"}], config
    index = client.get_model_repository_index()
    assert [(model.name, model.state) for model in index.models] == [(MODEL, "READY")]

    same_as_predict(client.infer(MODEL, [image(grpc_client, FILES)], compression_algorithm="gzip"), FILES)
    bomb = lambda: client.infer(MODEL, [image(grpc_client, [bytes(21 << 20)])], compression_algorithm="gzip")
    refused(bomb, "limit")
    client.infer(MODEL, [image(grpc_client, FILES)], client_timeout=20.0)

    # One stream: answers in order, and an image that fails does not end it.
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)), compression_algorithm="gzip")
    sent = [FILES[:1], [b"no picture"], FILES, FILES[1:]]
    for number, files in enumerate(sent):
        client.async_stream_infer(MODEL, [image(grpc_client, files)], request_id=str(number))
    for number, files in enumerate(sent):
        result, error = answers.get(timeout=60)
        if files == [b"no picture"]:
            assert result is None and "unsupported_image" in error.message(), error
        else:
            assert error is None and result.get_response().id == str(number), error
            same_as_predict(result, files)
    client.stop_stream()
    client.close()


check_http()
check_grpc()
print("tritonclient: REST and gRPC agree with /predict")
