"""BentoML: two workers, no batching. `bentoml serve serve_bentoml:Detect --host … --port …`."""

from pathlib import Path

import bentoml

from pipeline import WORKERS, Pipeline


@bentoml.service(workers=WORKERS, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Detect:
    """Picture in a form, detections as JSON."""

    def __init__(self) -> None:
        self.pipeline = Pipeline()

    @bentoml.api(route="/predict")
    def predict(self, file: Path) -> dict:
        return self.pipeline(file.read_bytes())
