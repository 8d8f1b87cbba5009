"""The page Distill: a draft in the address, a teacher's image size, sizes in all precisions, a pretrained teacher."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from streamlit.testing.v1 import AppTest

from smallalign_core.runs.store import Store
from smallalign_core.spec.catalog import PRETRAINED
from tests.conftest import Show, Train, texts


def draft_of(app: AppTest) -> dict[str, Any]:
    return dict(yaml.safe_load(app.code[0].value))


def address(app: AppTest) -> dict[str, str]:
    return {name: "".join(value) for name, value in app.query_params.items()}


@pytest.mark.slow
def test_the_address_has_the_draft(shown: Show) -> None:
    app = shown("distil", data="digits")
    app.number_input(key="spec.epochs").set_value(7)
    app.number_input(key="spec.data.images").set_value(500)
    app.selectbox(key="spec.network.kind").set_value("mlp").run()
    app.number_input(key="spec.network.mlp.width").set_value(24)
    app.selectbox(key="spec.loss.kind").set_value("scaled_mse")
    app.selectbox(key="spec.optimizer.kind").set_value("sgd").run()
    app.button(key="spec.augment.add.rotate").click().run()
    entered = draft_of(app)
    assert entered["epochs"] == 7
    assert entered["network"]["width"] == 24

    again = shown("distil", **address(app))  # a reload, or another person's browser

    assert not again.warning
    assert draft_of(again) == entered


def test_a_damaged_draft_is_one_sentence(shown: Show) -> None:
    for damaged in ("{no json", '{"epochs": -1}', "[]", '{"network":{"kind":"flop"}}'):
        app = shown("distil", spec=damaged)

        assert any("Invalid link parameter" in one.value for one in app.warning), damaged
        assert not app.error, damaged


@pytest.mark.slow
def test_a_teacher_brings_its_image_size(shown: Show, store: Store, train: Train) -> None:
    teacher = train(data={"source": "digits", "size": 16})
    app = shown("runs", run=teacher.id)
    (link,) = [one for one in app.get("page_link") if one.proto.label == "Use as teacher"]
    assert "size=16" in link.proto.query_string

    app = shown("distil", teacher=teacher.id, data="digits", size="16")

    assert draft_of(app)["data"] == {"source": "digits", "size": 16}
    assert "size" not in app.query_params
    assert any("Invalid link" in one.value for one in shown("distil", size="2").warning)


@pytest.mark.slow
def test_exact_sizes_stand_beside_each_other_and_baselines_are_in_the_time(shown: Show) -> None:
    app = shown("distil", data="digits")
    (table,) = [one.value for one in app.markdown if one.value.startswith("ONNX | fp32 | fp16 | int8")]
    assert "**kB**" in table
    sizes = [float(size) for size in re.findall(r"\d+\.\d{3}", table)]
    assert len(sizes) == 3
    assert sizes == sorted(sizes, reverse=True)

    next(toggle for toggle in app.toggle if toggle.label == "Also train baselines").set_value(True).run()

    (time,) = [metric for metric in app.metric if metric.label == "Training time"]
    assert "2 baselines included" in time.help


def test_a_pretrained_teacher_is_offered_where_there_is_none(shown: Show, tmp_path: Any) -> None:
    from PIL import Image

    for label, color in (("cats", "red"), ("dogs", "blue")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (32, 32 + number), color).save(tmp_path / "photos" / label / f"{number}.png")
    app = shown("distil", data=str(tmp_path / "photos"))
    assert "No trained model has these classes yet" in texts(app)

    next(one for one in app.button if one.label == "Fine-tune a pretrained teacher").click().run()

    assert app.selectbox(key="spec.network.kind").value == "timm"
    written = json.loads(address(app)["spec"])
    assert written["network"]["name"] == next(one.name for one in PRETRAINED if one.role == "teacher")
    assert written["network"]["pretrained"] is True
