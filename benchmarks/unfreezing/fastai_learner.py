"""What fastai's Learner does before, at and after an unfreeze, on tiny random data.

    pip install fastai==2.8.12
    python benchmarks/unfreezing/fastai_learner.py [1 … 7]

Each line is one measured fact and begins with its line in the table of docs/unfreezing.md.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import fastai
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import Learner  # with fit_one_cycle and the like
from fastai.callback.tracker import SaveModelCallback
from fastai.callback.training import BnFreeze
from fastai.data.core import DataLoaders
from fastai.torch_core import params
from fastcore.basics import noop
from fastcore.foundation import L
from tiny import loader, mode_gap, moved, network, state
from torch import nn

RATE = 0.02


class Watch(Callback):
    """The mode gap of the backbone in the first step of training."""

    gap = None

    def before_batch(self):
        if self.gap is None and self.training:
            self.gap = mode_gap(self.learn.model[0], self.xb[0])


def learner(folder=None, *, dropout=0.0, shuffle=False, **settings):
    """Two layer groups, backbone and head, the first one frozen: as vision_learner makes it."""
    model = nn.Sequential(*network(dropout))
    torch.manual_seed(2)
    learn = Learner(
        DataLoaders(loader(shuffle), loader()), model, loss_func=nn.CrossEntropyLoss(), path=folder,
        splitter=lambda m: L(m[0], m[1]).map(params), lr=RATE, **settings,
    )  # fmt: skip
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.logger = noop
    learn.freeze()
    return learn


def learning(learn):
    return {name for name, p in learn.model.named_parameters() if p.requires_grad}


def frozen_layers():
    ways = {
        "Learner": dict,
        "Learner(train_bn=False)": lambda: {"train_bn": False},
        "Learner(train_bn=False, cbs=BnFreeze())": lambda: {"train_bn": False, "cbs": BnFreeze()},
    }
    for way, settings in ways.items():
        gaps = []
        for dropout in (0.5, 0.0):
            learn, watch = learner(dropout=dropout, **settings()), Watch()
            before = state(learn.model)
            learn.fit_one_cycle(1, slice(RATE), cbs=watch)
            gaps.insert(0, watch.gap)
        after = state(learn.model)
        print(
            f"1 frozen, {way}: BatchNorm's running_mean moved by "
            f"{moved(before, after, 'running_mean'):.3g}, its weight by "
            f"{moved(before, after, '.1.weight'):.3g}, convolutions by "
            f"{moved(before, after, '0.0.weight'):.3g}"
        )
        print(f"2 frozen, {way}: train and eval output differ by {gaps[0]:.3g}, "
              f"with dropout in the backbone by {gaps[1]:.3g}")  # fmt: skip
    learn = learner(train_bn=False, cbs=BnFreeze())
    learn.unfreeze()
    learn.fit_one_cycle(1, slice(RATE))
    learn.freeze()
    before = state(learn.model[0])
    learn.fit_one_cycle(1, slice(RATE))
    print("1 frozen again after an unfreeze, the last one: weights moved by "
          f"{moved(before, state(learn.model[0]), 'weight'):.3g}")  # fmt: skip


def unfrozen_layers():
    learn = learner(train_bn=False)
    frozen, total = learning(learn), len(list(learn.model.parameters()))
    learn.fit_one_cycle(1, slice(RATE))
    learn.unfreeze()
    before, learns = state(learn.model), learning(learn)
    learn.fit_one_cycle(1, slice(RATE / 100, RATE))
    after = state(learn.model)
    still = [n for n in learns if torch.equal(before[n], after[n])]
    print(
        f"3 train_bn=False: {len(frozen)} tensors have requires_grad when frozen (the head has 2), "
        f"{len(learns)} of {total} after the unfreeze; of these did not move: "
        f"{', '.join(sorted(still)) or 'none'}"
    )


def schedulers():
    ways = {
        "fit_one_cycle": lambda learn: learn.fit_one_cycle(2),
        "fit_flat_cos": lambda learn: learn.fit_flat_cos(2),
        "fit_sgdr": lambda learn: learn.fit_sgdr(2, 1),
        "fine_tune": lambda learn: learn.fine_tune(2),
    }
    for way, fit in ways.items():
        learn = learner()
        fit(learn)
        learn.unfreeze()
        fit(learn)
        print(f"4 {way}, unfreeze, {way}: runs")


def resume():
    with tempfile.TemporaryDirectory() as folder:
        for kind, dropout in (("no randomness", 0.0), ("dropout and shuffling", 0.5)):
            _resume(Path(folder), kind, {"dropout": dropout, "shuffle": dropout > 0})


def _resume(folder, kind, settings):
    def unfrozen_epochs(learn, start_epoch, cbs=None):
        learn.fit_one_cycle(3, slice(RATE / 100, RATE), cbs=cbs, start_epoch=start_epoch)

    learn = learner(folder, train_bn=False, **settings)
    learn.fit_one_cycle(1, slice(RATE))
    learn.unfreeze()
    unfrozen_epochs(learn, 0, SaveModelCallback(every_epoch=True, with_opt=True))
    whole = state(learn.model)
    for unfreezes in (False, True):
        learn = learner(folder, train_bn=False, **settings)
        if unfreezes:
            learn.unfreeze()
        learn.load("model_0")
        learns = learning(learn)
        unfrozen_epochs(learn, 1)
        print(
            "5 unfrozen after epoch 1 of 4, a new Learner"
            f"{', unfrozen by hand,' if unfreezes else ''} loads epoch 2, {kind}: "
            f"{len(learns)} of {len(list(learn.model.parameters()))} tensors have requires_grad; "
            f"the end is {moved(whole, state(learn.model)):.3g} from the whole run's"
        )


def two_processes():
    print("6 two processes: not run here")


def head_carries_over():
    learn = learner()
    before = state(learn.model[1])
    learn.fit_one_cycle(1, slice(RATE))
    alone = state(learn.model[1])
    learn.unfreeze()
    print(f"7 the head moved by {moved(before, alone):.3g} before the unfreeze, "
          f"by {moved(alone, state(learn.model[1])):.3g} at it")  # fmt: skip


SITUATIONS = {
    "1": frozen_layers, "2": frozen_layers, "3": unfrozen_layers, "4": schedulers, "5": resume,
    "6": two_processes, "7": head_carries_over,
}  # fmt: skip

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"fastai {fastai.__version__}, torch {torch.__version__}")
    for run in dict.fromkeys(SITUATIONS[number] for number in sys.argv[1:] or SITUATIONS):
        run()
