"""Masked autoencoding: reconstruct the masked patches of a crop from the visible ones (paper section 3).

`hi-end-mae` decodes by querying the encoder's states, `mae` by self-attention alone. The whole model is kept, and its
encoder is what fine-tuning starts from.
"""

from __future__ import annotations

from HiEndMAECore.networks import HiEndMAE
from HiEndMAECore.networks.variants import pretraining_arguments

from .base import ObjectiveRequest, PretrainingSetup, TokenEncoder, register_objective


@register_objective("mae", requires=(TokenEncoder,))
@register_objective("hi-end-mae", requires=(TokenEncoder,))
class MaskedAutoencoderObjective(PretrainingSetup):
    """A masked autoencoder with random weights, in the sizes of a ViT variant."""

    def __init__(self, request: ObjectiveRequest) -> None:
        """Build the model.

        Raises:
            ValueError: If a size does not suit the variant.
        """
        arguments = pretraining_arguments(
            request.variant,
            objective=request.objective,
            cross_stages=request.cross_stages,
            mask_ratio=request.mask_ratio,
            in_channels=request.in_channels,
            image_size=request.image_size,
        )
        model = HiEndMAE(**arguments)
        architecture = {"network": "HiEndMAE", "variant": request.variant, "arguments": arguments}
        super().__init__(model, model, architecture)
