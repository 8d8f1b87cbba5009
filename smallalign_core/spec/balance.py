"""The balance family: what training does about classes of unequal size. One method at a time: two would correct twice.

All use the numbers of training images per class, after cleaning decisions and label noise.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from smallalign_core.spec._part import Part, shorthand


class _Balance(Part):
    """The base of all.

    Attributes:
        of_labels: whether it changes the label loss only, and so does nothing in a loss without labels.
    """

    of_labels: ClassVar[bool] = True


class Unbalanced(_Balance):
    """None: every image counts the same."""

    of_labels: ClassVar[bool] = False
    kind: Literal["none"] = "none"


class ClassWeights(_Balance):
    """Class weights: the label loss of a class of n images is weighted by n to the power of -`power`. At 1 these are
    inverse frequencies, `balanced` in scikit-learn. The mean weight over the training images is 1.
    """

    kind: Literal["class_weights"] = "class_weights"
    power: Annotated[
        float, Field(gt=0, le=2, description="1: inverse class frequency (balanced); 0.5: its square root.")
    ] = 1.0


class EffectiveNumber(_Balance):
    """Class weights by effective number: (1 - β) / (1 - βⁿ) for a class of n images (Cui et al., CVPR 2019). Between no
    weights (β = 0) and inverse frequencies (β → 1). The mean weight over the training images is 1.
    """

    kind: Literal["effective_number"] = "effective_number"
    beta: Annotated[
        float, Field(ge=0, lt=1, description="0.9 to 0.9999 in the paper: about 1 / (1 - β) images of a class count.")
    ] = 0.999


class Sampling(_Balance):
    """Class-balanced sampling: an epoch has as many images as ever, and a class of n images a share in proportion to n
    to the power of `q` (Kang et al., ICLR 2020). Each class passes through all of its images before one recurs, and a
    repeated image gets another augmentation. Works with every loss, also without labels.
    """

    of_labels: ClassVar[bool] = False
    kind: Literal["sampling"] = "sampling"
    q: Annotated[float, Field(ge=0, lt=1, description="0: all classes equally often; 0.5: square-root sampling.")] = 0.0


class LogitAdjustment(_Balance):
    """Logit adjustment: the label loss sees the logits plus τ times the logarithm of the class shares (Menon et al.,
    ICLR 2021, eq. 10). In training only: validation, test and exported files use the plain softmax of the logits: the
    probabilities for classes of equal size.
    """

    kind: Literal["logit_adjustment"] = "logit_adjustment"
    tau: Annotated[float, Field(gt=0, le=5, description="τ; 1 minimizes the balanced error.")] = 1.0


Balance = Annotated[
    Unbalanced | ClassWeights | EffectiveNumber | Sampling | LogitAdjustment,
    Field(discriminator="kind"),
    shorthand("kind"),
]
