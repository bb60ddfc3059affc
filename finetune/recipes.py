"""Named configurations of the fine-tuning loop; single fields are overridden on the command line."""

import dataclasses

from finetune.augment import Config as Augment
from finetune.train import Config

# The paper's detector with the hyper-parameters of the authors' public code, where the paper is silent.
DPA_P2PNET = Config()

# Minutes on two CPU cores: small tiles, a short run at a higher learning rate. Not for results.
DEMO = dataclasses.replace(
    DPA_P2PNET,
    recipe="demo",
    epochs=30,
    learning_rate=5e-4,
    warmup_steps=10,
    evaluate_every=10,
    checkpoint_every=5,
    augment=Augment(crop=192),
)

RECIPES = {config.recipe: config for config in (DPA_P2PNET, DEMO)}
