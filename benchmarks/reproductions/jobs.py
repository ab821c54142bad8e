"""An experiment's stand-in, prepared but not trained: network, weights and real images."""

import tempfile
from pathlib import Path

from commands import stand_ins

from tlx.composition import compose
from tlx.config import parse
from tlx.training.job import Job, prepare


def prepared(label: str, *more: str) -> Job:
    """`label` as `commands.stand_ins` gives it; `more` are further settings."""
    arguments = stand_ins(label.partition("-")[0])[label]
    config = parse(compose([*arguments, "data.num_workers=0", *more]))
    with tempfile.TemporaryDirectory() as folder:
        return prepare(config, Path(folder))
