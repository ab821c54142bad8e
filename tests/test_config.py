"""Every choice composes into typed settings; every mistake is named with its mend."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tlx.composition import _unused, compose, conf_dir, override, run_hydra, saved_config
from tlx.config import parse
from tlx.errors import UserError
from tlx.models.catalog import BACKBONES

CHOICES = sorted(
    path.relative_to(conf_dir()).with_suffix("").as_posix()
    for path in conf_dir().rglob("*.yaml")
    if path.parent != conf_dir() and path.parent.name != "settings"
)


def config(*overrides):
    return parse(compose(overrides))


def test_all_choices_are_found():
    groups = {choice.split("/")[0] for choice in CHOICES}
    assert groups == {
        "augment", "backbone", "cache", "data", "experiment", "head", "optimizer", "scheduler",
        "stage", "trainer",
    }  # fmt: skip
    assert len(CHOICES) == len(list(conf_dir().rglob("*.yaml"))) - 2  # train.yaml, settings


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_to_valid_settings(choice):
    group, name = choice.split("/")
    parsed = config(f"{group}={name}", "data.root=somewhere")
    if group == "backbone":
        assert parsed.backbone.name == name.removesuffix("_classifier")


def test_every_torchvision_network_is_a_choice():
    assert len(BACKBONES) == 81  # and cnn4, which is only trained from scratch
    assert config("backbone=efficientnet_b3").backbone.name == "efficientnet_b3"
    assert config("backbone.name=regnet_y_400mf").backbone.name == "regnet_y_400mf"


def test_a_stage_scales_the_rate_or_sets_its_own():
    head, top = config("optimizer.lr=0.01").stages
    assert (head.optimizer.lr, top.optimizer.lr) == (0.01, 0.01 * 0.05)
    assert config("optimizer.lr=0.01", "stage.top.lr=1e-5").stages[1].optimizer.lr == 1e-5


def test_a_stage_can_have_its_own_optimizer():
    stages = config("stage.top.optimizer={_target_: torch.optim.SGD, momentum: 0.9}").stages
    assert [s.optimizer.target for s in stages] == ["torch.optim.AdamW", "torch.optim.SGD"]
    assert stages[1].optimizer.settings == {"momentum": 0.9}


def test_zero_is_a_value():
    assert config("seed=0", "head.dropout=0").seed == 0
    assert config("data.val=0").data.val == 0.0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["backbone=vgg61"], "unknown backbone 'vgg61'. Did you mean .*vgg16"),
        (["backbone.name=resnet5"], "unknown backbone 'resnet5'. Did you mean .*resnet50"),
        (["epochs=3"], "Do you mean stage.head.epochs or stage.top.epochs"),
        (["batch_size=8"], r"'batch_size'. Do you mean data.batch_size\?"),
        (["root=photos"], "Do you mean data.root"),
        (["--epochs", "3"], "--epochs: settings are epochs=VALUE, without dashes"),
        (["tests"], "tests: settings are KEY=VALUE; do you mean data.root=tests"),
        (["data=folder", "data.root=a,b (c)"], r"in quotes: \"data.root='a,b \(c\)'\""),
        (["optimizer=adamm"], "unknown optimizer 'adamm'. Did you mean adam or adamw"),
        (["cache=false"], "unknown cache 'false'. Did you mean off"),
        (["cache=true"], "unknown cache 'true'. Did you mean on"),
        (["augment=False"], "unknown augment 'False'. Did you mean none"),
        (["trainer=0"], "unknown trainer '0'. Valid: auto, cpu"),
        (["stage=null"], "unknown stage 'null'.* Valid: finetune"),
        (["stage=[head,top]"], "unknown stage 'top'"),
        (["experiment=null"], "experiment=null: leave it out"),
        (["data="], "^unknown data ''. Valid: csv, elpv"),
        (["data=./photos"], "^data=./photos: no such folder.*data=folder data.root=DIR$"),
        (["backbone=ResNet-50"], r"'ResNet-50'. Did you mean resnet50\?"),
        (["optimizer=SGD"], r"Did you mean sgd\?"),
        (["learning_rate=1"], "Do you mean stage.head.lr or stage.top.lr or optimizer.lr"),
        (["trainer.max_epochs=1"], "Do you mean stage.head.epochs or stage.top.epochs"),
        (["freeze=true"], "Do you mean stage or stage.head.train_from or"),
        (["validation_split=0.2"], r"Do you mean data.val\?"),
        (["data.columns.path=file"], "all of its own: 'data.columns={path: …}'"),
        (["data.class_weights.cat=5"], "all of its own: 'data.class_weights={cat: …}'"),
        (["model=vgg16"], r"unknown key 'model'. Do you mean backbone\?"),
        (["Größe=3"], "unknown key 'Größe'"),
        (
            ["data.hint=Ähre"],
            "^data.hint=Ähre: a value with Ä takes quotes: \"data.hint='Ähre'\".$",
        ),
        (["data.hint=a(b"], r"a value with \( takes quotes"),
        (
            ["stage.head.scheduler={name: Ähre}"],
            "^[^\n]*: a value with Ä takes quotes, \"{NAME: 'VALUE'}\"",
        ),
        (["head.hidden=[1"], r"^head.hidden=\[1: brackets and quotes come in pairs.$"),
        (["data.image_size=224,224"], "^data.image_size=224,224 has several .*one number.* -m "),
        (["optimizer.lr=choice(1,2)"], "is a sweep: add -m"),
        (["optimizer.lr=range(a)"], r"^optimizer.lr=range\(a\): cannot read 'range\(a\)': mism"),
        (["data.class_weights={Ä: 5"], "lacks the } at its end"),
        (["data.class_weights={a, Ä: 5}"], "a is no NAME: VALUE. A name with , or : takes quotes"),
        (["optimzer.lr=1"], "unknown key 'optimzer.lr'. Did you mean optimizer.lr"),
        (["stage.hed.epochs=1"], "unknown key 'stage.hed.epochs'. Did you mean stage.head.epochs"),
        (
            ["stage=head", "stage.top.epochs=1"],
            "stage.top.epochs is not a key of this stage; leave it",
        ),
        (["sead=1"], "unknown key 'sead'. Did you mean seed"),
        (["+data.rot=x"], "unknown key 'data.rot'. Did you mean data.root"),
        (["+experimnt.x=1"], "unknown key 'experimnt'"),
        (["stage.head.patience=0"], "stage.head.patience=0: 1 epoch or more, or null"),
        (["data.num_workers=-1"], "data.num_workers=-1 is negative"),
        (["stage.head.epochs=0"], "stage.head.epochs=0: a stage trains for 1 epoch or more"),
        (["stage.head.epochs=two"], "stage.head.epochs='two' is not valid; .* a whole number"),
        (["data=folder"], "data.root is not given; add data.root="),
        (["loss=mse"], "loss='mse' is not valid; it takes cross_entropy | binary"),
        (["head.hidden=256"], r"it takes a list of numbers: 'head.hidden=\[256\]'"),
        (["threshold=0.5"], r"^threshold=0.5 is not valid; it takes f1 \| youden \| recall:X"),
        (["threshold=recall"], "^threshold=recall is not valid"),
        (["data.val=20"], "data.val=20.0 is not a fraction"),
        (["data.val=0.9"], "data.val=0.9 and data.test=0.25 leave nothing to train on"),
        (["head.activation=ReLU"], r"unknown head.activation 'ReLU'. Did you mean relu\?"),
        (["head.dropout=2"], "head.dropout=2.0 is not a fraction"),
        (["stage.head.scheduler=cosine"], r"'stage.head.scheduler=\{name: cosine\}'"),
        (["stage.top.optimizer=sgd"], r"'stage.top.optimizer=\{_target_: torch.optim.SGD\}'"),
        (["data.batch_size=0"], "data.batch_size=0 must be above 0"),
        (["seed=-1"], "seed=-1 is negative"),
        (["seed=20000000000000000000"], "is too large"),
        (["optimizer.lr=find"], "a rate is found for a stage: stage.head.lr=find"),
        (["stage.head.optimizer.lr=0.1"], "write stage.head.lr=… instead"),
        (
            ["stage.hed.scheduler.name=constant"],
            "unknown key 'stage.hed.scheduler'. Did you mean s",
        ),
        (["stage.head.scheduler.name=constant"], r"'stage.head.scheduler=\{name: …\}'"),
        (["optimizer.lr=0"], "stage.*learning rate of 0; it must be above 0"),
        (["stage.top.lr=inf"], "stage.top: a learning rate of inf; it must be .* finite"),
        (["trainer.clip=nan"], "trainer.clip=nan must be above 0"),
        (["+stage.x.train_from=all"], "stage.x.epochs is not given; add .stage.x.epochs=…"),
        (["stage.head.optimizer={_target_: torch.optim.SGD, lr: 1}"], "write stage.head.lr=1"),
    ],
)
def test_a_mistake_is_named_with_its_mend(overrides, message):
    with pytest.raises(UserError, match=message):
        config(*overrides)


def test_a_typo_in_an_experiment_file_raises():
    raw = compose([])
    raw["trainer"]["presicion"] = "32"
    with pytest.raises(UserError, match=r"trainer.presicion'. Did you mean trainer.precision"):
        parse(raw)


def test_the_help_names_every_choice():
    text = (conf_dir() / "train.yaml").read_text()
    choices = text.split("Choices (GROUP=NAME):")[1].split("Settings often changed")[0]
    assert {choice.split("/")[1] for choice in CHOICES} <= set(re.findall(r"\w+", choices))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["optimizer=adamm"], 2),
        (["head.dropout=2"], 2),
        (["data=folder", "data.root=/nope"], 2),
    ],
)
def test_help_and_a_config_error_do_not_import_torch(arguments, code):
    program = (
        "import sys, tlx.train\n"
        f"sys.argv[1:] = {arguments}\n"
        "try: tlx.train.main(sys.argv[1:])\n"
        "except SystemExit as stop: code = stop.code or 0\n"
        "else: code = 0\n"
        "heavy = {'torch', 'torchvision', 'lightning', 'numpy'} & set(sys.modules)\n"
        "print('imported', sorted(heavy), 'code', code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == f"imported [] code {code}"
    assert "Traceback" not in done.stderr


def test_a_regular_expression_and_a_mapping_need_no_second_quotes():
    data = config("data=csv", r"data.group=(patient\d+)_'", "data.columns={label: breed}").data
    assert (data.group, data.columns) == (r"(patient\d+)_'", {"label": "breed"})


def test_data_that_is_a_folder_is_its_root(monkeypatch, tmp_path):
    (tmp_path / "my photos (1)").mkdir()
    (tmp_path / "photos.csv").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"is a folder: data=folder 'data.root=my photos \(1\)'$"):
        config("data=my photos (1)")
    with pytest.raises(UserError, match=r"is a file: data=csv data.table=.*photos.csv$"):
        config(f"data={tmp_path}/photos.csv")
    (tmp_path / "elpv").mkdir()
    assert config("data=elpv").data.source == "elpv"


@pytest.mark.parametrize("name", ["Äpfel", "a(b", "a&b", "it's", "true", "1e5", "05", "a b", "5"])
def test_a_class_is_taken_as_it_is(name):
    given = config("data=csv", f"positive={name}", f"data.class_weights={{{name}: 5, b: 2.5}}",
                   f"data.columns={{label: {name}}}")  # fmt: skip
    assert given.positive == name
    assert {str(key): value for key, value in given.data.class_weights.items()} == {
        name: 5,
        "b": 2.5,
    }
    assert given.data.columns == {"label": name}


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("{'Ä, b': 5, \"c: d\": 2}", {"Ä, b": 5, "c: d": 2}),
        ("{it's: 1, b's:1e-1}", {"it's": 1, "b's": 0.1}),
        (r"{a\:b: 1}", {"a:b": 1}),
        ("balanced", "balanced"),
        ("null", None),
    ],
)
def test_class_weights_take_any_name(text, weights):
    assert config(f"data.class_weights={text}").data.class_weights == weights


@pytest.mark.parametrize(
    ("key", "values", "read"),
    [
        ("data.root", "2024_03,a b,c (d)", ["2024_03", "a b", "c (d)"]),
        ("data.root", "choice(a,b)", ["a", "b"]),
        ("positive", "Äpfel,b,null,'d,e'", ["Äpfel", "b", None, "d,e"]),
        ("data.class_weights", "balanced,{Ä: 5},{a: 1}", ["balanced", {"Ä": 5}, {"a": 1}]),
    ],
)
def test_what_is_swept_is_read_alike(monkeypatch, tmp_path, key, values, read):
    given = ["data=csv", f"{key}={values}", f"hydra.sweep.dir={tmp_path}", "-m"]
    monkeypatch.setattr(sys, "argv", ["tlx.train", *given])
    found = []
    run_hydra(lambda begun: found.append(begun.config()))
    group, _, name = key.rpartition(".")
    assert [(raw[group] if group else raw)[name] for raw in found] == read


@pytest.mark.parametrize(
    "path",
    [
        "/ends in (1)\\",
        "/photos (1)", "/home/jörg/Fotos", "/it's #1 & [more]", "C:/a~1", "/plain/x-1.zip",
        "/a=b", "lr=0.1/x",
        "2024_01", "1e5", "2024.10", "-7", "true", "#1 two", "[2024] a", "two: new", "@two",
    ],
)  # fmt: skip
def test_a_path_is_taken_as_it_is(path):
    assert config("data=folder", f"data.root={path}").data.root == path
    for given in (path, f'"{path}"'):
        moved = override(compose(["data=folder", "data.root=here"]), {"data.root": given})
        assert moved["data"]["root"] == path


@pytest.mark.parametrize(("at", "many"), [(0, 1), (1, 1), (3, 1), (1, 10)])
def test_a_sweep_is_one_wherever_its_flag_stands(monkeypatch, tmp_path, at, many):
    names = ("rotation_range", "width_shift_range", "height_shift_range", "shear_range", "mixup",
             "zoom_range", "cval", "channel_shift_range", "erasing", "cutmix")  # fmt: skip
    keys = [f"augment.{name}" for name in names] if many > 1 else ["optimizer.lr"]
    values = {key: "0.25,0.5" if key == keys[0] else "choice(0.125)" for key in keys}
    given = ["data=folder", f"data.root={tmp_path}", f"hydra.sweep.dir={tmp_path}/sweep"]
    arguments = [*given, *(f"{key}={value}" for key, value in values.items())]
    monkeypatch.setattr(sys, "argv", ["tlx.train", *arguments[:at], "-m", *arguments[at:]])
    found = []
    run_hydra(lambda begun: found.append((begun.folder.name, begun.is_trial)))
    names = ["0_optimizer.lr=0.25", "1_optimizer.lr=0.5"] if many == 1 else ["0", "1"]
    assert found == [(name, True) for name in names]


def test_a_root_is_found_from_other_folders(monkeypatch, tmp_path):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert config("data=folder", "data.root=photos").data.root == str(tmp_path / "photos")
    assert config("data=folder", "data.root=none").data.root == "none"


def test_a_cache_is_found_from_other_folders_before_it_is_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for given, kept in (
        ("new", str(tmp_path / "new")), ("null", None), ("${data.root}/new", "/photos/new"),
    ):  # fmt: skip
        assert config("data=folder", "data.root=/photos", f"cache.dir={given}").cache.dir == kept


def test_trials_stay_in_the_sweeps_folder(monkeypatch, tmp_path):
    given = ["data=folder", "data.root=../../../a,../../../b", f"hydra.sweep.dir={tmp_path}/sweep",
             "-m"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["tlx.train", *given])
    found = []
    run_hydra(lambda begun: found.append(begun.folder))
    assert found == [tmp_path / "sweep/0", tmp_path / "sweep/1"]


def test_what_trials_share_is_not_in_their_names(monkeypatch, tmp_path):
    shared = ["data=folder", "data.root=/my photos (1)", r"data.group=.*/(\d+),_",
              "data.class_weights={a: 1, b: 2}", "augment.zoom_range=[0.5,1]"]  # fmt: skip
    given = ["-m", *shared, "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep"]
    monkeypatch.setattr(sys, "argv", ["tlx.train", *given])
    found = []
    run_hydra(lambda begun: found.append(begun.folder.name))
    assert found == ["0_seed=0", "1_seed=1"]


def test_a_run_keeps_what_only_hydra_can_resolve(monkeypatch, tmp_path):
    arguments = ["data=folder", "data.root=${hydra:runtime.cwd}", f"hydra.run.dir={tmp_path}/run"]
    monkeypatch.setattr(sys, "argv", ["tlx.train", *arguments])
    monkeypatch.chdir(tmp_path)
    found = []
    run_hydra(lambda begun: found.append((begun.folder, begun.config(), begun.keep())))
    ((folder, raw, _),) = found
    assert raw["data"]["root"] == str(tmp_path)
    assert saved_config(folder) == raw
    assert sorted(path.name for path in (folder / ".hydra").iterdir()) == [
        "config.yaml", "hydra.yaml", "overrides.yaml"
    ]  # fmt: skip
    overrides = (folder / ".hydra/overrides.yaml").read_text("utf-8")
    assert yaml.safe_load(overrides) == arguments[:2]


def test_runs_that_begin_in_one_second_have_a_folder_each(tmp_path):
    path = f"{tmp_path}/outputs/12-00-00"
    assert [_unused(path), _unused(path)] == [path, path]  # one process asks several times
    _unused.cache_clear()
    assert _unused(path) == f"{path}-2"
    assert Path(f"{path}-2").is_dir()


def test_a_folder_that_cannot_be_made(monkeypatch, tmp_path):
    (tmp_path / "outputs").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tlx.train"])
    with pytest.raises(UserError, match=r"^outputs/\S+ cannot be made: Not a directory; .*run.dir"):
        run_hydra(lambda begun: None)


def test_a_path_below_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert config("data=folder", "data.root=~/photos").data.root == "/home/someone/photos"
