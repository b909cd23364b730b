"""The ViT encoder, one function for pretraining and fine-tuning, and the blocks it is made of.

Pre-norm blocks, exact GELU, biases everywhere, no dropout; a learned cls token without position; a fixed 3-D sin-cos
position table computed for the grid at hand. Parameter names are those of the authors' weights (which keep timm's
layout), so that loading them needs no renaming. Facts: paper section 3 and the released code.

Order of things: a patch is a vector of its voxels ordered (ph, pw, pd, channel); patches are ordered (h, w, d) with h
slowest.
"""

from __future__ import annotations

import math


def num_visible_patches(patches: int, mask_ratio: float) -> int:
    """How many of `patches` stay visible: floor(L (1 - r)), exact where floats are not (L = 1000, r = 0.9 gives 100)."""
    visible = math.floor(round(patches * (1.0 - mask_ratio), 6))
    if not 1 <= visible < patches:
        raise ValueError(
            f"a mask ratio of {mask_ratio} leaves {visible} of {patches} patches visible; "
            "one at least must be visible, and one masked"
        )
    return visible
