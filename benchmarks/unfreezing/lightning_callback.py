"""What Lightning's finetuning callbacks do before, at and after an unfreeze, on tiny random data.

    pip install lightning==2.6.6
    python benchmarks/unfreezing/lightning_callback.py [1 … 7]

Each line is one measured fact and begins with its line in the table of docs/unfreezing.md.
"""

import logging
import sys
import tempfile
import warnings
from pathlib import Path

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning, ModelCheckpoint
from tiny import STEPS, loader, mode_gap, moved, network, state
from torch import nn
from torch.optim import lr_scheduler

SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 3 * STEPS),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, 3 * STEPS),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, STEPS),
}


class Net(LightningModule):
    """`only_head`: what the optimizer begins with is the head, else all with requires_grad."""

    def __init__(self, *, dropout=0.0, scheduler=None, only_head=False):
        super().__init__()
        self.backbone, self.head = network(dropout)
        self.scheduler, self.only_head = scheduler, only_head

    def training_step(self, batch, _):
        images, labels = batch
        return nn.functional.cross_entropy(self.head(self.backbone(images)), labels)

    def configure_optimizers(self):
        if self.only_head:  # as the documentation of BackboneFinetuning has it
            parameters = self.head.parameters()
        else:  # as that of BaseFinetuning
            parameters = filter(lambda p: p.requires_grad, self.parameters())
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        if self.scheduler is None:
            return optimizer
        plan = {"scheduler": SCHEDULERS[self.scheduler](optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": plan}


class AllFrozen(BaseFinetuning):
    """Freezes BatchNorm too, which BackboneFinetuning does not."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, pl_module, epoch, optimizer):
        pass


class BlockByBlock(AllFrozen):
    """Unfreezes both blocks at epoch 1, each with a rate of its own."""

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            for index, lr in ((1, 0.01), (0, 0.001)):
                self.unfreeze_and_add_param_group(pl_module.backbone[index], optimizer, lr=lr)


class Watch(Callback):
    """The state when each epoch ends, what learns in it, and the mode gap at its start."""

    def __init__(self, folder=None):
        self.states, self.learning, self.gap = {}, {}, None
        self.folder = folder

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            names = {n for n, p in pl_module.named_parameters() if p.requires_grad}
            self.learning[trainer.current_epoch] = names
            if self.gap is None:
                self.gap = mode_gap(pl_module.backbone, batch[0])
            if trainer.current_epoch > 0:
                self.head_at_start = state(pl_module.head)

    def on_train_epoch_end(self, trainer, pl_module):
        self.states[trainer.current_epoch] = state(pl_module)
        if self.folder is not None:
            file = self.folder / f"{trainer.current_epoch}-{trainer.global_rank}.pt"
            torch.save(state(pl_module), file)


def fit(net, callbacks, epochs, *, ckpt_path=None, shuffle=False, **settings):
    torch.manual_seed(2)
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=callbacks, logger=False,
        enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        **{"devices": 1, **settings},
    )  # fmt: skip
    trainer.fit(net, loader(shuffle), ckpt_path=ckpt_path)


def frozen_layers():
    ways = {
        "BackboneFinetuning": lambda: BackboneFinetuning(99),
        "BackboneFinetuning(train_bn=False)": lambda: BackboneFinetuning(99, train_bn=False),
        "BaseFinetuning.freeze(train_bn=False)": AllFrozen,
    }
    for way, callback in ways.items():
        for only_head in (False, True):
            net, watch = Net(only_head=only_head), Watch()
            before = state(net)
            fit(net, [callback(), watch], 1)
            print(
                f"1 frozen, {way}, {'head' if only_head else 'requires_grad'} in the optimizer: "
                f"BatchNorm's running_mean moved by {moved(before, state(net), 'running_mean'):.3g}"
                f", its weight by {moved(before, state(net), '.1.weight'):.3g}"
                f", convolutions by {moved(before, state(net), '.0.weight'):.3g}"
            )
        gaps = [watch.gap]
        fit(Net(dropout=0.5), [callback(), watch := Watch()], 1)
        print(f"2 frozen, {way}: train and eval output differ by {gaps[0]:.3g}, "
              f"with dropout in the backbone by {watch.gap:.3g}")  # fmt: skip
    net, watch = Net(dropout=0.5), Watch()
    net.backbone.eval()
    before = state(net)
    fit(net, [AllFrozen(), watch], 2)
    print(
        "1, 2 the last one, and backbone.eval() by hand before fit: running_mean moved by "
        f"{moved(before, state(net), 'running_mean'):.3g}, train and eval differ by {watch.gap:.3g}"
    )


def unfrozen_layers():
    ways = {
        "BackboneFinetuning": BackboneFinetuning(1),
        "BaseFinetuning, two fresh blocks with a rate each": BlockByBlock(),
    }
    for way, callback in ways.items():
        net, watch = Net(), Watch()
        fit(net, [callback, watch], 2)
        first, second = watch.states[0], watch.states[1]
        still = [n for n in watch.learning[1] if torch.equal(first[n], second[n])]
        print(
            f"3 after the unfreeze, {way}: {len(watch.learning[1])} of "
            f"{len(list(net.parameters()))} tensors have requires_grad; of these did not move: "
            f"{', '.join(sorted(still)) or 'none'}"
        )


def schedulers():
    for name in SCHEDULERS:
        try:
            fit(Net(scheduler=name), [BackboneFinetuning(1)], 3)
            print(f"4 {name} over the unfreeze: runs")
        except Exception as error:  # whatever it is, it is the finding
            print(f"4 {name} over the unfreeze: {type(error).__name__}: {error}".splitlines()[0])


def resume():
    with tempfile.TemporaryDirectory() as folder:
        for kind, dropout in (("no randomness", 0.0), ("dropout and shuffling", 0.5)):
            _resume(Path(folder), kind, dropout)


def _resume(folder, kind, dropout):
    shuffle = dropout > 0
    net = Net(dropout=dropout)
    each = ModelCheckpoint(folder, filename=f"{dropout}-{{epoch}}", save_top_k=-1)
    fit(net, [BackboneFinetuning(1), each], 4, shuffle=shuffle)
    whole = state(net)
    for done in (1, 2):
        net, watch = Net(dropout=dropout), Watch()
        checkpoint = folder / f"{dropout}-epoch={done - 1}.ckpt"
        fit(net, [BackboneFinetuning(1), watch], 4, shuffle=shuffle, ckpt_path=checkpoint)
        print(
            f"5 unfrozen after epoch 1 of 4, resumed after epoch {done}, {kind}: "
            f"{len(watch.learning[done])} of {len(list(net.parameters()))} tensors have "
            f"requires_grad; the end is {moved(whole, state(net)):.3g} from the whole run's"
        )


def two_processes():
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fit(Net(), [BackboneFinetuning(1), Watch(folder)], 3, devices=2, strategy="ddp_spawn")
        weights = [name for name, _ in Net().named_parameters()]
        for epoch, when in ((0, "before"), (2, "two epochs after")):
            first, second = (torch.load(folder / f"{epoch}-{rank}.pt") for rank in (0, 1))
            apart = moved({name: first[name] for name in weights}, second)
            print(f"6 two processes, {when} the unfreeze: their weights differ by {apart:.3g}")


def head_carries_over():
    net, watch = Net(), Watch()
    before = state(net)
    fit(net, [BackboneFinetuning(1), watch], 2)
    at_start = {f"head.{n}": t for n, t in watch.head_at_start.items()}
    print(
        f"7 the head moved by {moved(before, watch.states[0], 'head'):.3g} before the unfreeze, "
        f"by {moved(at_start, watch.states[0]):.3g} at it"
    )


def quieten():
    warnings.simplefilter("ignore")
    for name in ("pytorch", "pytorch.utilities.rank_zero", "fabric", "fabric.utilities.rank_zero"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.ERROR)
    torch.set_num_threads(1)


SITUATIONS = {
    "1": frozen_layers, "2": frozen_layers, "3": unfrozen_layers, "4": schedulers, "5": resume,
    "6": two_processes, "7": head_carries_over,
}  # fmt: skip

quieten()  # the processes that Lightning starts, too
if __name__ == "__main__":
    print(f"lightning {lightning.__version__}, torch {torch.__version__}")
    for run in dict.fromkeys(SITUATIONS[number] for number in sys.argv[1:] or SITUATIONS):
        run()
