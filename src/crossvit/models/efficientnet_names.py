"""EfficientNet-PyTorch's names for weights, in timm's words.

EfficientNet-PyTorch (and its EfficientNet-Lite descendants) number the blocks through, `_blocks.7._bn1.weight`; timm
numbers them by stage, `blocks.3.0.bn2.weight`, and counts a block's norms from 1, without a gap where a block has no
expansion.
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
PLAIN = SQUEEZE | {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
EXPANDED = SQUEEZE | {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def to_timm_names(state_dict: Mapping[str, Tensor], timm_names: Sequence[str]) -> dict[str, Tensor]:
    """`state_dict` under timm's names if it bears EfficientNet-PyTorch's, else as it is.

    timm_names: the names of the timm model in its own order, which tell how its blocks are divided into stages.
    """
    if "_conv_stem.weight" not in state_dict:
        return dict(state_dict)
    blocks = list(
        dict.fromkeys(match[0] for match in (re.match(r"blocks\.\d+\.\d+", name) for name in timm_names) if match)
    )
    renamed = {}
    for name, value in state_dict.items():
        match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if match and int(match[1]) < len(blocks):
            words = EXPANDED if f"_blocks.{match[1]}._expand_conv.weight" in state_dict else PLAIN
            renamed[f"{blocks[int(match[1])]}.{words.get(match[2], match[2])}.{match[3]}"] = value
        else:
            part, _, rest = name.partition(".")
            renamed[f"{OUTER.get(part, part)}.{rest}"] = value
    return renamed
