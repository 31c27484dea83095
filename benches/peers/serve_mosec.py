"""mosec: two workers, no batching, which is its best setting on CPUs. `python serve_mosec.py --address … --port …`."""

from mosec import Server, Worker

from pipeline import WORKERS, Pipeline


class Detect(Worker):
    """Raw picture in, detections as JSON out."""

    def __init__(self) -> None:
        self.pipeline = Pipeline()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> dict:
        return self.pipeline(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Detect, num=WORKERS, max_batch_size=1, route="/predict")
    server.run()
