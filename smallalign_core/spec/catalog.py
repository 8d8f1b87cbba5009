"""Small pretrained networks for photographs, and larger ones to distill them from: names and figures, no weights.

All are convolutional but one teacher, run at the input size of their ImageNet weights, and export to ONNX. A test
builds each with timm and counts; licenses are those that timm states for the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Pretrained:
    """A network of timm with weights trained on ImageNet.

    Attributes:
        name: timm's, with the tag of the weights.
        role: what it is offered as; either kind may be the other.
        params: without the head, to which each class adds `features` + 1.
        macs: multiply-accumulates of one image at `size`, without the head.
        features: inputs of the head.
        size: side in pixels of the images that its weights were evaluated on.
        license: of the weights, as an SPDX identifier.
    """

    name: str
    role: Literal["student", "teacher"]
    params: int
    macs: int
    features: int
    size: int
    license: str

    @property
    def words(self) -> str:
        """Its figures, for a menu."""
        return f"{self.params / 1e6:.1f} M parameters, {self.macs / 1e6:,.0f} M MACs at {self.size} px, {self.license}"


PRETRAINED = (
    Pretrained("tinynet_e.in1k", "student", 761_972, 23_076_848, 1280, 106, "apache-2.0"),
    Pretrained("mobilenetv3_small_050.lamb_in1k", "student", 568_224, 23_164_688, 1024, 224, "apache-2.0"),
    Pretrained("mobilenetv3_small_075.lamb_in1k", "student", 1_016_872, 42_375_344, 1024, 224, "apache-2.0"),
    Pretrained("lcnet_050.ra2_in1k", "student", 599_856, 43_451_008, 1280, 224, "apache-2.0"),
    Pretrained("tinynet_d.in1k", "student", 1_057_446, 50_300_656, 1280, 152, "apache-2.0"),
    Pretrained("mobilenetv3_small_100.lamb_in1k", "student", 1_517_856, 55_486_400, 1024, 224, "apache-2.0"),
    Pretrained("mobilenetv4_conv_small_050.e3000_r224_in1k", "student", 957_952, 63_461_408, 1280, 224, "apache-2.0"),
    Pretrained("mnasnet_small.lamb_in1k", "student", 749_264, 67_059_184, 1280, 224, "apache-2.0"),
    Pretrained("mobilenetv2_050.lamb_in1k", "student", 687_680, 95_851_840, 1280, 224, "apache-2.0"),
    Pretrained("lcnet_100.ra2_in1k", "student", 1_672_800, 154_420_480, 1280, 224, "apache-2.0"),
    Pretrained("mobilenetv4_conv_small.e2400_r224_in1k", "student", 2_493_024, 184_725_568, 1280, 224, "apache-2.0"),
    Pretrained("tf_efficientnet_lite0.in1k", "student", 3_371_008, 383_907_552, 1280, 224, "apache-2.0"),
    Pretrained("resnet50.a1_in1k", "teacher", 23_508_032, 4_087_136_256, 2048, 224, "apache-2.0"),
    Pretrained("convnext_tiny.in12k_ft_in1k", "teacher", 27_820_128, 4_454_763_264, 768, 224, "apache-2.0"),
    Pretrained(
        "vit_small_patch16_224.augreg_in21k_ft_in1k", "teacher", 21_665_664, 4_598_498_304, 384, 224, "apache-2.0"
    ),
    Pretrained("tf_efficientnetv2_s.in21k_ft_in1k", "teacher", 20_177_488, 5_306_281_248, 1280, 300, "apache-2.0"),
)
"""Students, then teachers, each by their multiply-accumulates."""


def pretrained(name: str) -> Pretrained | None:
    """The entry of that name, with its tag or without."""
    return next((one for one in PRETRAINED if name in (one.name, one.name.partition(".")[0])), None)
