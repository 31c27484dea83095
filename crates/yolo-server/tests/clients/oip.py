"""Triton's public clients against a running server, unchanged: over REST and over gRPC.

Usage: oip.py <http host:port> <grpc host:port> <model>
The answers are compared with those of /predict.
"""

import json
import queue
import sys
import urllib.request

import cv2
import numpy as np
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException

HTTP, GRPC, MODEL = sys.argv[1:]
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


def check_http():
    client = http_client.InferenceServerClient(HTTP)
    check_both(client, http_client)
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata(MODEL)
    assert metadata["platform"] == "onnx_onnxv1" and metadata["name"] == MODEL
    assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert [tensor["name"] for tensor in metadata["outputs"]] == OUTPUTS
    assert client.is_model_ready(MODEL, metadata["versions"][0])

    text = http_client.InferRequestedOutput("boxes", binary_data=False)
    mixed = client.infer(MODEL, [image(http_client, FILES)], outputs=[http_client.InferRequestedOutput("scores"), text])
    whole = client.infer(MODEL, [image(http_client, FILES)])
    for name in ("scores", "boxes"):
        np.testing.assert_array_equal(mixed.as_numpy(name), whole.as_numpy(name))

    statistics = client.get_inference_statistics(MODEL)["model_stats"][0]
    assert statistics["inference_count"] >= statistics["execution_count"] > 0
    pending = [client.async_infer(MODEL, [image(http_client, FILES)]) for _ in range(8)]
    for request in pending:
        same_as_predict(request.get_result(), FILES)


def check_grpc():
    client = grpc_client.InferenceServerClient(GRPC)
    check_both(client, grpc_client)
    assert client.get_server_metadata().name == "yolo-server"
    metadata = client.get_model_metadata(MODEL)
    assert metadata.platform == "onnx_onnxv1" and [tensor.name for tensor in metadata.inputs] == ["image"]

    # One stream: answers in order, and an image that fails does not end it.
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
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
