"""Ray Serve: two replicas of one CPU, no batching."""

import signal

import ray
from ray import serve
from starlette.requests import Request

from pipeline import WORKERS, Pipeline, port


@serve.deployment(num_replicas=WORKERS, ray_actor_options={"num_cpus": 1})
class Detect:
    """Raw picture in, detections as JSON out."""

    def __init__(self) -> None:
        self.pipeline = Pipeline()

    async def __call__(self, request: Request) -> dict:
        return self.pipeline(await request.body())


if __name__ == "__main__":
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port()})
    serve.run(Detect.bind(), route_prefix="/predict")
    signal.pause()
