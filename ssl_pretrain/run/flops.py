"""Operations of a recipe's training for one patch."""

import torch

from shared.training.network_size import counted_operations
from ssl_pretrain.methods import Step
from ssl_pretrain.recipe import PretrainingRecipe

# Images that are counted with: batch norms want more than one.
IMAGES = 2


def flops_per_image(recipe: PretrainingRecipe) -> float:
    """Operations (two a multiply-add) of forward and backward pass for one patch; nothing is computed."""
    crops = [crop for crop in recipe.method.crops for _ in range(crop.count)]
    with torch.random.fork_rng(devices=[]):
        method = recipe.method.build()
        with counted_operations() as operations:
            views = [torch.zeros(IMAGES, 3, crop.size, crop.size) for crop in crops]
            method.loss(views, Step(number=0, samples=0, total=1)).backward()
    return operations.get_total_flops() / IMAGES
