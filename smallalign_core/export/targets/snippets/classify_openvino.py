"""Classify a picture: python classify.py picture.png (needs openvino, numpy and pillow)."""

import json
import sys
from pathlib import Path

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # OpenVINO reports every import to its maker

import numpy as np
import openvino
from PIL import Image

here = Path(__file__).parent
labels = json.loads((here / "labels.json").read_text(encoding="utf-8"))
# In float32, as the file was verified; without this, processors with bfloat16 compute in it.
model = openvino.compile_model(here / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

channels = model.input("images").partial_shape[3].get_length()
picture: Image.Image = Image.open(sys.argv[1])
if "A" in picture.getbands() or "transparency" in picture.info:  # on white; nearly white drawings on black
    picture = picture.convert("RGBA")
    visible = np.asarray(picture.convert("RGB").convert("L"))[np.asarray(picture.getchannel("A")) >= 128]
    ground = "white" if visible.size and (visible > 224).mean() < 0.9 else "black"
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, ground), picture)
picture = picture.convert("L" if channels == 1 else "RGB")
# Raw pixels, any size: resizing and normalising are inside the model. Several pictures of one size may go at once.
images = np.asarray(picture, dtype=np.uint8).reshape(1, picture.height, picture.width, channels)
probabilities = model({"images": images})["probabilities"]

for place in np.argsort(-probabilities[0])[:3]:
    print(f"{labels[place]}: {probabilities[0][place]:.2%}")
