"""LitServe: two workers, no batching, which is its best setting on CPUs."""

import litserve

from pipeline import WORKERS, Pipeline, port


class Detect(litserve.LitAPI):
    """Picture in a form, detections as JSON."""

    def setup(self, device: str) -> None:
        self.pipeline = Pipeline()

    def decode_request(self, request: litserve.server.Request) -> bytes:
        return request["file"].file.read()

    def predict(self, picture: bytes) -> dict:
        return self.pipeline(picture)

    def encode_response(self, detections: dict) -> dict:
        return detections


if __name__ == "__main__":
    server = litserve.LitServer(Detect(), accelerator="cpu", workers_per_device=WORKERS)
    server.run(host="127.0.0.1", port=port(), num_api_servers=1, log_level="warning", generate_client_file=False)
