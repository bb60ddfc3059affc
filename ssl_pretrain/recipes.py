"""Named recipes: every number of a pre-training run, with its source.

The length is that of Kang et al. (CVPR 2023), who pre-train ResNet-50 with MoCo v2 and SwAV and smaller ViTs with
DINO on patches of slides. All else is the methods' official codes', which also cover what that paper does not:
MAE, ViT-B, and DINO with ResNet-50.
"""

from dataclasses import replace
from pathlib import Path

from ssl_pretrain.data.views import ViewsConfig
from ssl_pretrain.methods import dino, mae, moco_v2, swav
from ssl_pretrain.optim.optimizers import LARC, SGD, AdamW
from ssl_pretrain.recipe import PretrainingRecipe, check

__all__ = ["IMAGENET_EPOCH", "RECIPES", "PretrainingRecipe", "check"]

# Lengths are counted in passes over ImageNet-1k, as the literature does, whatever the number of patches.
IMAGENET_EPOCH = 1_281_167
LENGTH = 200 * IMAGENET_EPOCH  # "200 ImageNet epochs": Kang et al., CVPR 2023

# ColorJitter and RandomGrayscale of the official MoCo v2 (main_moco.py, --aug-plus).
MOCO_COLOURS = ViewsConfig(
    jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2, blur_sigma=(0.1, 2.0)
)
# Twice as strong in SwAV (src/multicropdataset.py, get_color_distortion with s=1).
SWAV_COLOURS = replace(MOCO_COLOURS, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
# DINO (main_dino.py, DataAugmentationDINO).
DINO_COLOURS = replace(MOCO_COLOURS, saturation=0.2)

MOCO_V2_RESNET50 = PretrainingRecipe(
    name="moco_v2_resnet50",
    run_dir=Path("runs/moco_v2_resnet50"),
    out=Path("moco_v2_resnet50.pth"),
    # main_moco.py with --mlp --moco-t 0.2 --aug-plus --cos.
    method=moco_v2.MoCoConfig(
        arch="resnet50",
        image_size=224,
        crop_scale=(0.2, 1.0),
        blur=0.5,
        hidden_dim=2048,
        dim=128,
        queue_length=65_536,
        momentum=0.999,
        temperature=0.2,
        key_group=32,  # 256 images on 8 GPUs
    ),
    views=MOCO_COLOURS,
    # The same: SGD (not Nesterov's) with 0.03 for 256 images, no warm-up; everything is decayed.
    optimiser=SGD(base_lr=0.03, momentum=0.9, weight_decay=1e-4, decay_all=True, final_lr=0.0),
    batch_size=256,
    samples_seen=LENGTH,
)

# scripts/swav_800ep_pretrain.sh and main_swav.py.
SWAV = swav.SwAVConfig(
    arch="resnet50",
    image_size=224,
    large_scale=(0.14, 1.0),
    small_size=96,
    small_scale=(0.05, 0.14),
    small_crops=6,
    blur=0.5,
    hidden_dim=2048,
    dim=128,
    prototypes=3000,
    temperature=0.1,
    epsilon=0.05,
    sinkhorn_iterations=3,
    batch_norm_ranks=8,  # --syncbn_process_group_size 8: the GPUs of a node; VISSL's groups are of 8, too
    frozen_samples=IMAGENET_EPOCH,  # --freeze_prototypes_niters 313, of 4096 images
    queue_length=0,
)
# The same: 4.8 for 4096 images after 10 epochs from 0.3 on, then to 0.0048; apex LARC over all parameters.
SWAV_OPTIMISER = LARC(
    base_lr=0.3,
    momentum=0.9,
    trust=0.001,
    weight_decay=1e-6,
    decay_all=True,
    warmup_samples=10 * IMAGENET_EPOCH,
    warmup_lr=0.3,
    final_lr=0.0048,
)
SWAV_RESNET50 = PretrainingRecipe(
    name="swav_resnet50",
    run_dir=Path("runs/swav_resnet50"),
    out=Path("swav_resnet50.pth"),
    method=SWAV,
    views=SWAV_COLOURS,
    optimiser=SWAV_OPTIMISER,
    batch_size=4096,
    samples_seen=LENGTH,
)

# scripts/swav_200ep_bs256_pretrain.sh: 256 images share the prototypes with a queue, from epoch 15 on.
SWAV_RESNET50_256 = replace(
    SWAV_RESNET50,
    name="swav_resnet50_256",
    run_dir=Path("runs/swav_resnet50_256"),
    out=Path("swav_resnet50_256.pth"),
    method=replace(
        SWAV,
        frozen_samples=IMAGENET_EPOCH,  # --freeze_prototypes_niters 5005, of 256 images
        queue_length=3840,
        queue_after=15 * IMAGENET_EPOCH,
    ),
    optimiser=replace(SWAV_OPTIMISER, base_lr=0.6, warmup_samples=0, warmup_lr=0.0, final_lr=0.0006),
    batch_size=256,
)

# README of the official code, and for the rest the defaults of main_dino.py.
DINO = dino.DINOConfig(
    arch="resnet50",
    image_size=224,
    global_scale=(0.14, 1.0),
    local_size=96,
    local_scale=(0.05, 0.14),
    local_crops=8,
    blur=(1.0, 0.1, 0.5),
    solarise=0.2,
    drop_path=0.0,
    hidden_dim=2048,
    bottleneck_dim=256,
    output_dim=65_536,
    norm_last_layer=True,
    student_temperature=0.1,
    teacher_temperature=0.04,
    first_teacher_temperature=0.04,
    temperature_samples=0,
    centre_momentum=0.9,
    momentum=0.996,
    batch_norm_ranks=8,  # official: all, which are 8 in the README
    frozen_samples=IMAGENET_EPOCH,  # --freeze_last_layer 1
)
DINO_RESNET50 = PretrainingRecipe(
    name="dino_resnet50",
    run_dir=Path("runs/dino_resnet50"),
    out=Path("dino_resnet50.pth"),
    method=DINO,
    views=DINO_COLOURS,
    # README: --optimizer sgd --lr 0.03 --weight_decay 1e-4 --weight_decay_end 1e-4; defaults: 10 epochs of
    # warm-up, --min_lr 1e-6, --clip_grad 3.
    optimiser=SGD(
        base_lr=0.03,
        momentum=0.9,
        weight_decay=1e-4,
        warmup_samples=10 * IMAGENET_EPOCH,
        final_lr=1e-6,
        clip=3.0,
    ),
    batch_size=512,  # README: 64 images on each of 8 GPUs
    micro_batch=64,
    samples_seen=LENGTH,
)

DINO_VITB = replace(
    DINO_RESNET50,
    name="dino_vitb",
    run_dir=Path("runs/dino_vitb"),
    out=Path("dino_vitb.pth"),
    # Defaults of main_dino.py; the arguments of the released ViT-B are not public.
    method=replace(
        DINO,
        arch="vit_base_patch16_224",
        global_scale=(0.4, 1.0),
        local_scale=(0.05, 0.4),
        drop_path=0.1,
    ),
    optimiser=AdamW(
        base_lr=5e-4,
        betas=(0.9, 0.999),  # torch's
        weight_decay=0.04,
        final_weight_decay=0.4,
        warmup_samples=10 * IMAGENET_EPOCH,
        final_lr=1e-6,
        clip=3.0,
    ),
    batch_size=1024,  # README, for ViTs: 64 images on each of 16 GPUs
    micro_batch=64,
)

MAE_VITB = PretrainingRecipe(
    name="mae_vitb",
    run_dir=Path("runs/mae_vitb"),
    out=Path("mae.pth"),
    # Mask, loss, crops and decoder: official PRETRAIN.md and the defaults of models_mae.py.
    method=mae.MAEConfig(
        arch="vit_base_patch16_224",
        image_size=224,
        crop_scale=(0.2, 1.0),
        mask_ratio=0.75,
        norm_pix_loss=True,
        decoder_dim=512,
        decoder_depth=8,
        decoder_heads=16,
    ),
    views=ViewsConfig(horizontal_flip=0.5, vertical_flip=0.0),  # official: left-right only
    # Official PRETRAIN.md: blr 1.5e-4 (not main_pretrain.py's default of 1e-3), warm-up of 40 epochs,
    # weight decay 0.05; main_pretrain.py: betas 0.9 and 0.95, cosine to 0.
    optimiser=AdamW(
        base_lr=1.5e-4,
        betas=(0.9, 0.95),
        weight_decay=0.05,
        warmup_samples=40 * IMAGENET_EPOCH,
        final_lr=0.0,
    ),
    batch_size=4096,  # official: 64 images on each of 64 GPUs
    samples_seen=LENGTH,
)

# A few minutes on two CPU cores, to see the whole thing work; the numbers are ours. The loss falls to 0.8.
MAE_DEMO = PretrainingRecipe(
    name="mae_demo",
    run_dir=Path("runs/mae_demo"),
    out=Path("mae_demo.pth"),
    method=mae.MAEConfig(
        arch="vit_tiny_patch16_224",
        image_size=96,
        crop_scale=(0.05, 0.3),  # a few cells fill a crop, so that they can be seen in its 36 tokens
        # So that the picture shows what was predicted: with normalised targets a token's true mean and deviation
        # would have to be lent to it.
        norm_pix_loss=False,
        decoder_dim=128,
        decoder_depth=2,
        decoder_heads=4,
    ),
    views=ViewsConfig(horizontal_flip=0.5, vertical_flip=0.5),
    optimiser=AdamW(base_lr=4e-3, warmup_samples=2560),
    batch_size=64,
    samples_seen=25_600,
    checkpoint_every=200,
    monitor_every=200,
)


def _for_ihc(recipe: PretrainingRecipe) -> PretrainingRecipe:
    """Make the recipe `NAME_ihc`: colours and orientation varied as suits immunohistochemistry.

    Whether a nucleus is brown or blue is what is to be learnt, and what strong hue jitter, grayscale and
    solarising take away; slides have no up and down. The numbers are ours.
    """
    name = f"{recipe.name}_ihc"
    method = recipe.method
    if isinstance(method, dino.DINOConfig):
        method = replace(method, solarise=0.0)
    views = replace(
        recipe.views, hue=min(recipe.views.hue, 0.05), grayscale=0.0, vertical_flip=0.5, quarter_turns=True
    )
    return replace(
        recipe, name=name, run_dir=Path("runs", name), out=Path(f"{name}.pth"), method=method, views=views
    )


PUBLISHED = (MOCO_V2_RESNET50, SWAV_RESNET50, SWAV_RESNET50_256, DINO_RESNET50, DINO_VITB, MAE_VITB)
RECIPES = {recipe.name: recipe for recipe in (*PUBLISHED, *map(_for_ihc, PUBLISHED), MAE_DEMO)}
