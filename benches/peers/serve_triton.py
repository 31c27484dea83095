"""Triton through pytriton: two instances of a Python function, no batching; clients speak the v2 protocol."""

import json

import numpy
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from pipeline import WORKERS, Pipeline, port


def instance():
    """One instance: `image` is `[batch, 1]` of encoded pictures, `detections` `[batch, 1]` of JSON texts."""
    pipeline = Pipeline()

    @batch
    def infer(image: numpy.ndarray) -> dict:
        answers = [json.dumps(pipeline(picture)).encode() for picture in image.ravel()]
        return {"detections": numpy.array(answers, numpy.object_).reshape(-1, 1)}

    return infer


if __name__ == "__main__":
    config = TritonConfig(http_address="127.0.0.1", http_port=port(), allow_grpc=False, allow_metrics=False)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="page-layout",
            infer_func=[instance() for _ in range(WORKERS)],
            inputs=[Tensor(name="image", dtype=numpy.bytes_, shape=(1,))],
            outputs=[Tensor(name="detections", dtype=numpy.bytes_, shape=(1,))],
            config=ModelConfig(max_batch_size=1, batching=True),
        )
        triton.serve()
