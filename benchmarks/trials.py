"""What a trial costs once the features are there: twenty of them against one, and a warm start.

    python benchmarks/trials.py [OVERRIDE …]

One training of a head on frozen VGG16 from an empty cache, then a sweep over twenty learning rates
from another empty one: whole commands, by the clock. Then a process that has imported everything
starts the first training anew, now with its features there, up to the end of its first step.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = ["backbone=vgg16", "stage=head", "report=none", "test=false", "verbosity=quiet"]
RATES = ",".join(f"{1e-4 * 1.3**n:.2e}" for n in range(20))
WARM = """
import importlib, pkgutil, sys, time
import tlx
for module in pkgutil.walk_packages(tlx.__path__, "tlx."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from tlx.training.module import StageModule

def ended(self, *arguments):
    print(time.perf_counter() - started, flush=True)
    raise SystemExit

StageModule.on_train_batch_end = ended
started = time.perf_counter()
tlx.train.main(sys.argv[1:])
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        train = [sys.executable, "-m", "tlx.train"]
        plain = [*SETTINGS, *sys.argv[1:]]
        alone = [*plain, f"cache.dir={folder}/one"]
        sweep = [*plain, f"cache.dir={folder}/twenty", f"optimizer.lr={RATES}"]

        def timed(command: list[str]) -> float:
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - started

        found = {
            "one_s": timed([*train, *alone, f"hydra.run.dir={folder}/run"]),
            "twenty_s": timed([*train, "-m", *sweep, f"hydra.sweep.dir={folder}/sweep"]),
        }
        found["ratio"] = found["twenty_s"] / found["one_s"]
        warm = [sys.executable, "-c", WARM, *alone, f"hydra.run.dir={folder}/warm"]
        said = subprocess.run(warm, check=True, capture_output=True, text=True).stdout
        found["first_step_s"] = float(said.split()[-1])
    print(json.dumps({name: round(value, 2) for name, value in found.items()}))


if __name__ == "__main__":
    main()
