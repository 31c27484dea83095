"""Triton's public clients against a model of another task than detection: what it finds, as tensors.

Usage: oip_tasks.py <http host:port> <grpc host:port> <model> <picture>
The answers are compared with those of /predict.
"""

import json
import sys
import urllib.request

import numpy as np
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client

HTTP, GRPC, MODEL, PICTURE = sys.argv[1:]
FILE = open(PICTURE, "rb").read()
PARAMETERS = {"max_det": 5}


def predict():
    address = f"http://{HTTP}/predict?max_det=5&masks=rle"
    return json.load(urllib.request.urlopen(urllib.request.Request(address, FILE, {"Content-Type": "image/png"})))


def check(client, module):
    answer = predict()
    detections, task = answer["detections"], answer["model"]["task"]
    assert detections, "nothing to compare"
    # Twice, so that the second image's place in the tensors is seen.
    tensor = module.InferInput("image", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([FILE, FILE], dtype=object))
    result = client.infer(MODEL, [tensor], parameters=PARAMETERS)

    def same(name, expected, atol=2e-4):
        found = result.as_numpy(name)
        assert found.shape == (2, *np.shape(expected)), (name, found.shape, np.shape(expected))
        for image in found:
            np.testing.assert_allclose(image, expected, atol=atol)

    same("num_detections", [len(detections)])
    same("classes", [detection["class"] for detection in detections])
    same("scores", [detection["confidence"] for detection in detections])
    if task == "classify":
        assert result.as_numpy("boxes") is None
    elif task == "obb":
        # The corners again, from centre, sides and angle.
        boxes, angles = result.as_numpy("boxes")[1], result.as_numpy("angles")[1]
        for (x, y, w, h), angle, detection in zip(boxes, angles, detections):
            along = w / 2 * np.array([np.cos(angle), np.sin(angle)])
            across = h / 2 * np.array([-np.sin(angle), np.cos(angle)])
            corners = np.array([x, y]) + np.array([along + across, along - across, -along - across, -along + across])
            expected = [[detection["box"][f"{axis}{corner}"] for axis in "xy"] for corner in range(1, 5)]
            np.testing.assert_allclose(corners, expected, atol=1e-3)
    else:
        same("boxes", [[detection["box"][edge] for edge in ("x1", "y1", "x2", "y2")] for detection in detections])
    if task == "pose":
        points = [detection["keypoints"] for detection in detections]
        axes = [axis for axis in ("x", "y", "visible") if any(value is not None for value in points[0].get(axis, []))]
        same("keypoints", np.stack([[point[axis] for axis in axes] for point in points]).transpose(0, 2, 1))
    if task == "segment":
        masks = [[json.loads(mask) for mask in image] for image in result.as_numpy("masks")]
        assert masks == 2 * [[detection["rle"] for detection in detections]]
        wanted = [module.InferRequestedOutput("scores")]
        only = client.infer(MODEL, [tensor], parameters=PARAMETERS, outputs=wanted)
        assert only.as_numpy("masks") is None


check(http_client.InferenceServerClient(HTTP), http_client)
check(grpc_client.InferenceServerClient(GRPC), grpc_client)
print("tritonclient: REST and gRPC agree with /predict on", MODEL)
