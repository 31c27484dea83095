"""FastAPI and Ultralytics as the common tutorial has them, with one uvicorn process a core; its defaults otherwise."""

import io
import json
import os

import uvicorn
from fastapi import FastAPI, File, UploadFile
from PIL import Image
from ultralytics import YOLO

from pipeline import WORKERS, port, side_px

app = FastAPI()
model = YOLO(os.environ["YOLO_MODEL"], task="detect")


@app.post("/predict")
async def predict(file: UploadFile = File(...)) -> dict:
    """Detections in the uploaded picture."""
    picture = Image.open(io.BytesIO(await file.read())).convert("RGB")
    # Without rect=False a dynamic batch is taken for a dynamic size, and the model refuses the smaller rectangle; without
    # imgsz a model of another size than 640 refuses every picture.
    results = model(picture, imgsz=side_px(), rect=False, verbose=False)
    return {"detections": json.loads(results[0].to_json())}


if __name__ == "__main__":
    uvicorn.run("serve_fastapi:app", host="127.0.0.1", port=port(), workers=WORKERS, log_level="warning")
