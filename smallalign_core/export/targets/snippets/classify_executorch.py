"""Classify a picture: python classify.py picture.png (needs executorch, numpy and pillow)."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from executorch.runtime import Runtime
from PIL import Image

here = Path(__file__).parent
labels = json.loads((here / "labels.json").read_text(encoding="utf-8"))
program = Runtime.get().load_program(here / "model.pte")
model = program.load_method("forward")

_, height, width, channels = model.metadata.input_tensor_meta(0).sizes()
picture: Image.Image = Image.open(sys.argv[1])
if "A" in picture.getbands() or "transparency" in picture.info:  # on white; nearly white drawings on black
    picture = picture.convert("RGBA")
    visible = np.asarray(picture.convert("RGB").convert("L"))[np.asarray(picture.getchannel("A")) >= 128]
    ground = "white" if visible.size and (visible > 224).mean() < 0.9 else "black"
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, ground), picture)
# Raw pixels of the one size that the program takes; normalising is inside.
picture = picture.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
image = torch.from_numpy(np.array(picture, dtype=np.uint8).reshape(1, height, width, channels))
logits, probabilities = (np.array(one) for one in model.execute([image]))

for place in np.argsort(-probabilities[0])[:3]:
    print(f"{labels[place]}: {probabilities[0][place]:.2%}")
