"""Lightning's BackboneFinetuning: head first, block5 from a later epoch on.

The callback unfreezes all of `backbone`, so that what is to stay frozen stands beside it.
"""

import time

import common
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn
from torchvision_reference import loaders, network


class Net(LightningModule):
    def __init__(self, weights, first):
        super().__init__()
        model = network(weights)
        self.frozen = model.features[:first].requires_grad_(False)
        self.backbone = model.features[first:]
        self.head = model.classifier
        self.right = self.images = 0

    def forward(self, images):
        images = images.contiguous(memory_format=torch.channels_last)
        return self.head(self.backbone(self.frozen(images)).flatten(1))[:, 0]

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.binary_cross_entropy_with_logits(self(images), labels.float())

    def on_validation_epoch_start(self):
        self.right = self.images = 0

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.right += int(((self(images) > 0) == (labels == 1)).sum())
        self.images += len(labels)

    def configure_optimizers(self):
        learning = filter(lambda p: p.requires_grad, self.parameters())
        return torch.optim.RMSprop(
            learning, lr=common.HEAD_RATE, alpha=common.RHO, eps=common.EPSILON
        )


class Watch(Callback):
    def __init__(self, clock, head_epochs):
        self.clock = clock
        self.head_epochs = head_epochs

    def phase(self, trainer):
        return "head" if trainer.current_epoch < self.head_epochs else "top"

    def on_train_epoch_start(self, trainer, pl_module):
        if self.phase(trainer) == "top":  # the callback gives its rate to the new group alone
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = common.TOP_RATE
        self.clock.epoch(self.phase(trainer))

    def on_train_batch_end(self, trainer, *args):
        self.clock.step(self.phase(trainer))

    def on_validation_start(self, trainer, pl_module):
        self.started = time.perf_counter()

    def on_validation_end(self, trainer, pl_module):
        self.clock.val.append(time.perf_counter() - self.started)


def main():
    args, clock = common.arguments(), common.Clock()
    seed_everything(args.seed)
    loader, val = loaders(args.data)
    unfreeze = BackboneFinetuning(
        unfreeze_backbone_at_epoch=args.head_epochs, lambda_func=lambda epoch: 1.0,
        backbone_initial_lr=common.TOP_RATE, should_align=False, train_bn=False,
    )  # fmt: skip
    net = Net(args.weights, 0 if args.everything else 24)
    trainer = Trainer(
        accelerator="cpu", max_epochs=args.head_epochs + args.top_epochs,
        limit_train_batches=args.steps, callbacks=[unfreeze, Watch(clock, args.head_epochs)],
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(net, loader, val)
    clock.report(net.right, net.images)


if __name__ == "__main__":
    main()
