"""fastai's vision_learner: freeze, fit, freeze_to block5, fit; its own transforms and loaders.

Of the recipe's augmentation its aug_transforms have no shifts and no shear.
"""

import time
from functools import partial

import common
from fastai.vision.all import (
    BCEWithLogitsLossFlat,
    Callback,
    CancelTrainException,
    ImageDataLoaders,
    Normalize,
    Resize,
    ResizeMethod,
    RMSProp,
    aug_transforms,
    params,
    set_seed,
    vision_learner,
)
from safetensors.torch import load_file
from torch import nn
from torchvision.models import vgg16


class Watch(Callback):
    def __init__(self, clock, steps):
        self.clock, self.steps, self.phase = clock, steps, "head"

    def before_train(self):
        self.clock.epoch(self.phase)

    def after_batch(self):
        if self.training:
            self.clock.step(self.phase)
            if self.iter + 1 == self.steps:
                raise CancelTrainException

    def before_validate(self):
        self.started = time.perf_counter()

    def after_validate(self):
        self.clock.val.append(time.perf_counter() - self.started)


def main():
    args, clock = common.arguments(), common.Clock()
    set_seed(args.seed)
    augment = aug_transforms(
        max_rotate=40, min_zoom=0.8, max_zoom=1.2, flip_vert=True, max_warp=0, max_lighting=0,
        p_affine=1.0,
    )  # fmt: skip
    data = ImageDataLoaders.from_folder(
        args.data, train="train", valid="val", bs=common.BATCH,
        item_tfms=Resize(common.SIZE, method=ResizeMethod.Squish),
        batch_tfms=[*augment, Normalize.from_stats(common.MEAN, common.STD)],
    )  # fmt: skip
    head = nn.Sequential(
        nn.Flatten(), nn.Linear(8192, common.HIDDEN), nn.ReLU(), nn.Dropout(common.DROPOUT),
        nn.Linear(common.HIDDEN, 1),
    )  # fmt: skip
    watch = Watch(clock, args.steps)
    learn = vision_learner(
        data, vgg16, pretrained=False, n_out=1, custom_head=head,
        splitter=lambda m: [params(m[0][0][:24]), params(m[0][0][24:]), params(m[1])],
        loss_func=BCEWithLogitsLossFlat(), cbs=watch,
        opt_func=partial(RMSProp, mom=0.0, sqr_mom=common.RHO, eps=common.EPSILON, wd=0.0),
    )  # fmt: skip
    features = {
        name.removeprefix("features."): tensor for name, tensor in load_file(args.weights).items()
    }
    learn.model[0][0].load_state_dict(features)
    with learn.no_bar(), learn.no_logging():
        learn.freeze()
        learn.fit(args.head_epochs, lr=common.HEAD_RATE)
        watch.phase = "top"
        learn.freeze_to(0 if args.everything else -2)
        learn.fit(args.top_epochs, lr=common.TOP_RATE)
        logits, labels = learn.get_preds(act=lambda x: x)
    clock.report(int(((logits[:, 0] > 0) == (labels == 1)).sum()), len(labels))


if __name__ == "__main__":
    main()
