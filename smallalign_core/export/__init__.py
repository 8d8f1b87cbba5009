"""Export: one ONNX file that takes raw pixels, and a parity report on its predictions; other runtimes in `targets`.

Input `images` is uint8 [N, height, width, channels], any batch, height and width, as a canvas or PIL gives it; resizing
and normalising are inside. Outputs are `logits` and `probabilities`, float32 [N, classes]; the temperature fitted on
validation is folded into the probabilities. The file is in single precision, its constants in halves, or in 8-bit
integers; what the smaller ones lose is measured and written into them. A checksum shows whether the file was changed.
"""

from smallalign_core.export._bundle import (
    bundle as bundle,
    bundle_folder as bundle_folder,
    download as download,
    kept_bundle as kept_bundle,
    submit_browser_parity as submit_browser_parity,
)
from smallalign_core.export._checksum import checksum_matches as checksum_matches, with_checksum as with_checksum
from smallalign_core.export._download import zipped as zipped
from smallalign_core.export._file import (
    CALIBRATED_ON as CALIBRATED_ON,
    precision_of as precision_of,
    to_onnx as to_onnx,
    validation_logits as validation_logits,
)
from smallalign_core.export._parity import (
    GATES as GATES,
    LIMIT as LIMIT,
    Loss as Loss,
    Parity as Parity,
    loss_of as loss_of,
    parity as parity,
)
from smallalign_core.export._push import Pushed as Pushed, push as push
from smallalign_core.export._quantized import least_drop as least_drop
from smallalign_core.export._runtime import OnnxClassifier as OnnxClassifier, nhwc as nhwc
from smallalign_core.export._size import (
    Sizes as Sizes,
    Within as Within,
    files_before as files_before,
    sizes_before as sizes_before,
    sizes_of as sizes_of,
    within_drop as within_drop,
)
from smallalign_core.export._verify import verify as verify
from smallalign_core.export._write import check_precision as check_precision, export as export
from smallalign_core.export.targets import bundle_target as bundle_target, kept_target as kept_target
from smallalign_core.spec.precision import (
    CALIBRATED as CALIBRATED,
    CALIBRATIONS as CALIBRATIONS,
    PRECISIONS as PRECISIONS,
    Calibration as Calibration,
    FileOptions as FileOptions,
    Precision as Precision,
    file_name as file_name,
    parse_variant as parse_variant,
    variant_of as variant_of,
)
