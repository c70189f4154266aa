"""What every command answers to --help and to a mistake: at once, that is without importing torch, and in few lines.

Most are asked in forks of one fresh process, which takes a minute or two, five on a busy machine; what goes through the same
lines, in this one.
"""

import re
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gift_vit import merge
from gift_vit.config import compose_config
from tests.cold import ROOT, Answer, answers

pytestmark = pytest.mark.timeout(900)

FOLDERS = ("gift_vit", "data_prep", "experiments")
COMMANDS = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for folder in FOLDERS
    for file in (ROOT / folder).rglob("*.py")
    if 'if __name__ == "__main__"' in file.read_text()
)
TRAIN = "gift_vit.train"
STARTED = (TRAIN, "gift_vit.explain", "data_prep.vtab")  # the last one calls by itself what cli.main calls for the others
SMOKE = [TRAIN, "debug=smoke"]
MISTAKES: dict[str, tuple[list[str], str]] = {
    "dataset": ([TRAIN, "dataset=cubb"], "unknown dataset 'cubb'; did you mean cub?"),
    "key": ([TRAIN, "optim.lrr=1"], "unknown key optim.lrr; did you mean optim.lr?"),
    "null group": ([TRAIN, "dataset=null"], "dataset=null: a group cannot be null"),
    "type": ([TRAIN, "trainer.epochs=two"], "trainer.epochs: Value 'two' of type 'str' could not be converted to Integer"),
    "lr": ([TRAIN, "optim.lr=-1"], "optim.lr=-1.0: expected a number above 0"),
    "epochs": ([TRAIN, "trainer.epochs=0"], "trainer.epochs=0: expected 1 or more"),
    "rank": ([TRAIN, "method.rank=0"], "method.rank=0: expected a whole number from 1"),
    "precision": ([TRAIN, "trainer.precision=fp8"], "unknown trainer.precision 'fp8'"),
    "project": ([TRAIN, "tracker=wandb", "tracker.project=a/b"], "expected a W&B name: not empty"),
    "sweep": ([TRAIN, "sweep=cubb"], "unknown sweep 'cubb'; did you mean cub?"),
    "sweeps": ([TRAIN, "-m", "sweep=cub,dogs"], "sweep=cub,dogs: the axes of several sweep files would be lost"),
    "grids": ([TRAIN, "sweep=cub", "grid=paper,equal"], "grid=paper,equal: the axes of several grids would be lost"),
    "seeds": (
        [TRAIN, "sweep=final", "dataset=digits", "seeds=10,11"],
        "seeds=10,11: the list of a sweep's seeds is one value; ",
    ),
    "no list": (["experiments.tables", "datasets=cub,dogs"], "datasets=cub,dogs: expected a list, as datasets=[cub,dogs]"),
    "a grid": ([TRAIN, "sweep=cub", "grid=equl"], "unknown grid 'equl'; did you mean equal? (known: paper, equal)"),
    "missing data": (
        [*SMOKE, "dataset=tiny_mammals"],
        "type: python -m gift_vit.train dataset=tiny_mammals dataset.root=<folder that holds tiny_imagenet/",
    ),
    "missing folder": ([*SMOKE, "dataset=folder", "dataset.root=nowhere"], "nowhere"),
    "home folder": ([*SMOKE, "dataset=folder", "dataset.root=~/no such bücher (2)"], "/no such bücher (2)"),
    "other kind": ([*SMOKE, "dataset=parquet", f"dataset.root={ROOT}"], "give the folder that holds them, or for class "),
    "no images": ([*SMOKE, "dataset=folder", f"dataset.root={ROOT}/tests"], "tests: found no image of the classes "),
    "data": (["gift_vit.data", "nowhere"], "there is no folder or file nowhere; give root="),
    "long name": (["gift_vit.data", f"root={'x' * 300}"], "there is no folder or file xxx"),
    "file": (
        ["gift_vit.data", f"root={ROOT}/LICENSE"],
        "LICENSE is a file; expected a folder of images, a CSV or a Parquet file",
    ),
    "missing weights": ([TRAIN, "backbone.weights=nowhere.pth"], "nowhere.pth"),
    "file of a run": (["gift_vit.evaluate", f"run={ROOT}/LICENSE"], "LICENSE is no run folder: it holds no config.yaml"),
    "split of a search run": (["gift_vit.evaluate", "run=nowhere", "split=test"], "nowhere is no run folder"),
    "run to merge": (
        ["gift_vit.merge", "run=nowhere", "out=a.pth"],
        "nowhere is no run folder: it holds no config.yaml; give run=",
    ),
    "suffix of an export": (
        ["gift_vit.export", "run=run", "out=a.bin"],
        "out=a.bin: expected a name that ends in .onnx or .pt2",
    ),
    "run to export": (["gift_vit.export", "run=nowhere", "out=a.pt2"], "nowhere is no run folder"),
    "suffix": (["gift_vit.merge", "run=nowhere", "out=a.bin"], "out=a.bin: expected a name that ends in .safetensors or .pth"),
    "required": (["gift_vit.merge", "run=nowhere"], "out=… is required; --help explains"),
    "checkpoint": (["gift_vit.import_gift", "none.pth.tar", "dataset=cub", "out=run"], "no checkpoint none.pth.tar"),
    "released": (
        ["gift_vit.import_gift", "a", "dataset=flower", "out=b"],
        "dataset=flower has no released checkpoints; did you",
    ),
    "run to verify": (["gift_vit.verify", "run=nowhere"], "nowhere is no run folder"),
    "runs to verify": (["gift_vit.verify", "runs=nowhere"], "runs=nowhere: there is no finished run below it"),
    "what to verify": (["gift_vit.verify"], "give run=<a run's folder> or runs=<a folder with runs>, one of them"),
    "split to keep": (["gift_vit.evaluate", "run=a", "split=val", "keep_predictions=true"], "drop split="),
    "run to predict with": (["gift_vit.predict", "run=nowhere", "images=a"], "nowhere is no run folder"),
    "what to write": (["gift_vit.predict", "run=nowhere", "images=a", "out=a.txt"], "out=a.txt: expected a name that ends in"),
    "run to push": (["gift_vit.push", "run=nowhere", "repo=me/it"], "nowhere is no run folder"),
    "no slash": (["gift_vit.push", "run=run", "repo=it"], "repo=it: expected <user>/<name> of the Hugging Face Hub"),
    "no slash to pull": (["gift_vit.pull", "repo=it"], "repo=it: expected <user>/<name>"),
    "three parts": (["gift_vit.predict", "run=hf://me/it/now", "images=a"], "hf://me/it/now: expected hf://<user>/<name>"),
    "pulled before": (["gift_vit.pull", "repo=me/run"], "run is there already; give out=<another folder>"),
    "no revision": (
        ["gift_vit.predict", "run=hf://me/it@", "images=a"],
        "hf://me/it@: expected a branch, tag or commit after @",
    ),
    "maps of the hub": (["gift_vit.explain", "run=hf://me/it"], "run=hf://me/it is no folder to write to; give out="),
    "predictions of the hub": (
        ["gift_vit.evaluate", "run=hf://me/it", "keep_predictions=true"],
        "run=hf://me/it: expected the folder it was trained in",
    ),
    "run to explain": (["gift_vit.explain", "run=nowhere"], "nowhere is no run folder"),
    "run to score": (["gift_vit.explain.score", "run=nowhere"], "nowhere is no run folder"),
    "runs": (["gift_vit.explain.stability", "runs=[a,b]"], "a is no run folder"),
    "run to invert": (["gift_vit.invariance", "run=nowhere"], "nowhere is no run folder"),
    "runs to invert": (["gift_vit.invariance"], "give run=<a run's folder> or runs=[<folder>,<folder>], one of them"),
    "images to invert": (
        ["gift_vit.invariance", "run=a", "images=3", "forgetting=digits"],
        "images=3: expected 4 or more: the unbiased estimator of CKA is not defined for fewer",
    ),
    "nothing to measure": (["gift_vit.invariance", "run=a", "images=0"], "images=0: expected 4 or more"),
    "per class": (["gift_vit.invariance", "run=a", "per_class=-1"], "per_class=-1: expected 0 or more"),
    "layers": (["gift_vit.invariance", "run=a", "layers=[0,x]"], "layers=[0,x]: expected all, or indices of blocks"),
    "tables": (["experiments.tables", "root=nowhere"], "nowhere"),
    "format": (["experiments.tables", "format=html"], "unknown format 'html'"),
    "columns": (["experiments.tables", "columns=[top6]"], "unknown score top6 (known: top1, top5, "),
    "counted method": (["experiments.methods", "methods=[gfit]"], "methods=: unknown method 'gfit' (known: adalora, "),
    "one folder": (["experiments.ensemble", "runs=a"], "error: runs=a: expected a list, as runs=[a]"),
    "no folder": (["gift_vit.data"], "root=…, or its value alone, is required; --help explains"),
    "one member": (["experiments.ensemble", "runs=[a]"], "runs=[a]: give at least two folders, each once"),
    "members": (["experiments.ensemble", "runs=[a,b]"], "a is no run folder"),
    "run to describe": (["experiments.crate", "run=nowhere"], "nowhere is no run folder"),
    "runs to describe": (["experiments.crate", "runs=nowhere"], "runs=nowhere: there is no finished run below it"),
    "what to describe": (["experiments.crate"], "give run=<a run's folder> or runs=<a folder with runs>, one of them"),
    "licence": (["experiments.crate", "run=run", "license=mit"], "license=mit: expected an address"),
    "select": (["experiments.select", "root=nowhere"], "nowhere"),
    "status": (["experiments.status", "root=nowhere"], "no folder nowhere; pass root=<the output folder of the sweeps>"),
    "report": (["experiments.report", "root=nowhere"], "nowhere"),
    "variant": (["experiments.bench", "variants=[gfit]"], "unknown variant 'gfit' (known: reference; floor; gift; "),
    "file to write": (["experiments.bench_data", "out=."], "out=.: expected a file to write, no folder"),
    "classes": (["experiments.bench.end_to_end", "classes=0"], "classes=0: expected 1 or more"),
    "contender": (["experiments.bench.end_to_end", "contenders=[gfit]"], "unknown contenders 'gfit'; did you mean gift?"),
    "protocol": (["experiments.dashboard", "protocol=cleann"], "unknown protocol 'cleann'; did you mean clean?"),
    "images": (
        ["experiments.pretrain_mini", "data=no/where"],
        "no folder no/where; pass data=<folder with train-*.parquet and",
    ),
    "demo": (["experiments.demo", "images=11"], "images=11: expected 1 to 10, one for each digit"),
    "demo on texts": (
        ["experiments.demo_text", "tasks=[stsb]"],
        "tasks=['stsb']: expected some of cola, mrpc, qnli, rte, sst2",
    ),
    "fgvc": (["data_prep.fgvc", "cup"], "unknown dataset 'cup'; did you mean cub?"),
    "vtab": (["data_prep.vtab", "natral"], "there is no task 'natral'"),
    "glue": (["data_prep.glue", "rt"], "unknown task 'rt'; did you mean rte? (known: cola, mrpc, qnli, rte, "),
    "glue folder": (["data_prep.glue", "rte", "folder=nowhere"], "folder=nowhere is no folder"),
    "commonsense": (["data_prep.commonsense", "folder=nowhere"], "folder=nowhere is no folder"),
    "address": (["data_prep.commonsense", "source=data"], "source=data: expected an address that begins with https://"),
}


def words_of_texts(*words: str) -> bytes:
    """The config.yaml of a run on texts."""
    told = compose_config([*words, "backbone=roberta_base", "method=gift_qv", "phase=final"])
    return OmegaConf.to_yaml(told, resolve=True).encode()


# what stands in the place of a finished run's files: config.yaml, but for those that are named
DAMAGED: dict[str, tuple[bytes, str]] = {
    "no_yaml": (b"a: [1\nb: }", "no_yaml/config.yaml cannot be read (while parsing"),
    "tag": (b"a: !!python/object/apply:os.system [echo]", "tag/config.yaml cannot be read (could not determine a constructor"),
    "latin_1": ("seed: 0  # ü".encode("latin-1"), "latin_1/config.yaml cannot be read ('utf-8' codec can't decode"),
    "utf_16": ("seed: 0".encode("utf-16"), "utf_16/config.yaml cannot be read ('utf-8' codec can't decode"),
    "list": (b"- 1\n", "list/config.yaml is no configuration of a run: it holds a list"),
    "text": (b"hello", "text/config.yaml: unknown key hello"),
    "empty": (b"", "empty/config.yaml: the config has no backbone, optim, trainer"),
    "section": (b"optim: 1\n", "section/config.yaml: the config has no backbone"),
    "bomb": (
        b"a0: &a0 [x]\n" + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b",".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 30)),
        "bomb/config.yaml cannot be read (it holds an alias",
    ),
    "nested": (b"[" * 5000, "nested/config.yaml cannot be read (maximum recursion depth"),
    "large": (b"a: " + b"x" * (1 << 20), "large/config.yaml cannot be read (it is larger than a megabyte)"),
    **{
        name: (words_of_texts(*words), "out=a.pth: expected a new folder for a model of texts")
        for name, words in {
            "of_classes": ("dataset=glue_cola",),
            "of_numbers": ("dataset=glue_stsb",),
            "of_words": ("dataset=commonsense",),
        }.items()
    },
}
OF_TEXTS = [
    *(
        ([command, f"run={run}", *more], f"{run} takes texts, and not pictures: {what} are for runs on images; `python -m")
        for run, command, what, *more in (
            ("of_classes", "gift_vit.explain", "cluster maps"),
            ("of_classes", "gift_vit.explain", "cluster maps", "images=LICENSE"),
            ("of_classes", "gift_vit.explain.score", "cluster maps", "truth=boxes"),
            ("of_classes", "gift_vit.explain.faithfulness", "cluster maps"),
            ("of_classes", "gift_vit.export", "ONNX files and torch programs", "out=a.onnx"),
            ("of_classes", "gift_vit.export", "ONNX files and torch programs", "out=a.pt2"),
            ("of_classes", "gift_vit.predict", "predictions of files", "images=nowhere"),
            ("of_classes", "gift_vit.invariance", "measures of invariance and forgetting"),
            ("of_classes", "gift_vit.invariance", "measures of invariance and forgetting", "images=0", "forgetting=digits"),
            # one place says it, whatever the texts are for
            ("of_numbers", "gift_vit.predict", "predictions of files", "images=nowhere"),
            ("of_words", "gift_vit.explain", "cluster maps"),
        )
    ),
    (["gift_vit.explain.stability", "runs=[of_classes,of_numbers]"], "of_classes takes texts, and not pictures"),
    (["gift_vit.merge", "run=run", "out=a"], "out=a: expected a name that ends in .safetensors or .pth, and no folder"),
    (["gift_vit.merge", "run=of_classes", "out=run"], "out=run: expected a new folder for a model of texts"),
    (["gift_vit.invariance", "run=run", "images=0", "forgetting=glue_cola"], "forgetting=glue_cola holds texts, and models of"),
    (
        ["experiments.ensemble", "runs=[of_numbers,of_classes]"],
        "of_numbers keeps no predictions of test; it predicts numbers, and predictions are kept of classes alone",
    ),
    (
        ["experiments.ensemble", "runs=[of_words,of_classes]"],
        "of_words keeps no predictions of test; it answers in words, which training has kept in answers/",
    ),
]
RESULTS: dict[str, tuple[bytes, str]] = {
    "twice": (b'{"schema": 1, "schema": 1}', "twice/result.json is no readable result: it has the key 'schema' twice"),
    "cut": (b'{"schema": 1,', "cut/result.json is no readable result: it is not valid JSON"),
    "deep": (b"[" * 100_000, "deep/result.json is no readable result: maximum recursion depth"),
}
APART = ("no_yaml", "bomb", "nested", "of_classes", "twice", "deep")  # in processes; the others are read in this one
OUT = "/proc/nothing/x"
WRITING = (
    [TRAIN, "debug=smoke", f"paths.output_root={OUT}"],
    [TRAIN, "-m", "debug=smoke", f"paths.output_root={OUT}", "seed=0,1"],
    ["gift_vit.merge", "run=run", f"out={OUT}.pth"],
    ["gift_vit.export", "run=run", f"out={OUT}.pt2"],
    ["gift_vit.import_gift", "a", "dataset=cub", f"out={OUT}"],
    ["gift_vit.pull", "repo=me/it", f"out={OUT}"],
    ["gift_vit.explain", "run=run", f"out={OUT}"],
    ["gift_vit.explain.score", "run=run", f"out={OUT}"],
    ["gift_vit.explain.faithfulness", "run=run", f"out={OUT}"],
    ["gift_vit.explain.stability", "runs=[run,run2]", f"out={OUT}"],
    ["gift_vit.invariance", "run=run", f"out={OUT}"],
    ["experiments.tables", "root=run", f"out={OUT}"],
    ["experiments.report", "root=run", f"out={OUT}"],
    ["experiments.select", "root=run", f"out={OUT}/recipe"],
    ["experiments.demo", f"output_root={OUT}"],
    ["experiments.demo_text", f"output_root={OUT}"],
    ["experiments.dashboard", f"out={OUT}"],
    ["experiments.bench", f"out={OUT}"],
    ["experiments.pretrain_mini", f"out={OUT}"],
    ["data_prep.fgvc", "cub", f"root={OUT}"],
    ["data_prep.fgvc", "cub", f"archives={OUT}"],
    ["data_prep.vtab", "dtd", f"root={OUT}"],
    ["data_prep.glue", "rte", f"root={OUT}"],
    ["data_prep.commonsense", f"root={OUT}"],
)
HOMELESS = (
    [TRAIN, "debug=smoke", "paths.output_root=~no_such_user/x"],
    ["gift_vit.evaluate", "run=~no_such_user"],
    ["gift_vit.merge", "run=run", "out=~no_such_user/a.pth"],
    ["gift_vit.verify", "runs=~no_such_user"],
    ["gift_vit.push", "run=run", "repo=me/it", "seeds=~no_such_user"],
    ["experiments.status", "root=~no_such_user"],
    ["experiments.crate", "runs=~no_such_user"],
    ["experiments.tables", "root=~no_such_user"],
    [TRAIN, "-m", "debug=smoke", "seed=0,1", "paths.output_root=~no_such_user"],
    ["gift_vit.predict", "run=run", "images=~no_such_user/*.jpg"],
    ["gift_vit.data", "root=~no_such_user"],
    ["data_prep.fgvc", "dataset=cub", "root=~no_such_user"],
    ["data_prep.vtab", "task=caltech101", "source=folder", "folder=~no_such_user"],
)
LONG = "a" * 300


def _words(*words: str) -> list[str]:
    return [TRAIN, *words]


TYPED: list[tuple[list[str], str]] = [
    # interpolations, and sections that are gone or no sections
    (_words("paths.output_root=${missing}"), "paths.output_root: Interpolation key 'missing' not found"),
    (_words("seed=${oc.env:NOPE}"), "seed: KeyError raised while resolving interpolation"),
    (_words("seed=${seed}"), "seed: Recursive interpolation detected"),
    (_words("~optim"), "~optim: optim cannot be left out"),
    (_words("~hydra"), "~hydra: hydra cannot be left out"),
    (_words("~seed"), "the config has no seed"),
    (_words("method=[1]"), "method=[1]: expected one of adalora, "),
    (_words("method={a:1}"), "method={a:1}: expected one of adalora, "),
    (_words("dataset=3"), "dataset=3: expected one of cars, "),
    (
        _words("backbone.name=???", "backbone.model=???"),
        "backbone.name, backbone.model are required; give backbone.name=<value>",
    ),
    (_words("protocol.final_train=[]"), "Cannot merge DictConfig with ListConfig"),
    # numbers that are none, as values and as text
    (_words('optim.eps="nan"'), "optim.eps=nan: expected a finite number"),
    (_words("tracker.project=nan"), "tracker.project=nan: expected a finite number"),
    (_words("seed=99999999999999999999"), "seed=99999999999999999999: expected a number below 2^63"),
    # names that are parts of paths
    (_words("method.name=../../x"), "method.name=../../x: expected a name"),
    (_words(f"method.name={LONG}"), "expected a name of at most 150 letters"),
    (_words(f"paths.output_root={LONG}"), "File name too long"),
    (
        _words("debug=smoke", "run_name=smoke", "paths.output_root=/dev/null"),
        "error: cannot write /dev/null/search/digits/gift/test_vit/smoke",
    ),
    # words
    (_words("backbon=vit_mini"), "unknown key backbon; did you mean backbone?"),
    (_words("lr=0.1"), "unknown key lr; did you mean optim.lr?"),
    (_words("trainer.lr=0.1"), "unknown key trainer.lr; did you mean optim.lr?"),
    (_words("batchsize=8"), "unknown key batchsize; did you mean trainer.batch_size?"),
    (_words("dataset=gift"), "unknown dataset 'gift'; did you mean method=gift?"),
    (_words("cub"), "unexpected word 'cub': expected <key>=<value>; did you mean dataset=cub?"),
    (_words("optim.lr=0,01"), "optim.lr=0,01 has a decimal comma; write optim.lr=0.01"),
    (
        _words("optim.lr=0,5"),
        "several values are a sweep: add -m; a list is [0,5]; if it is a decimal comma, write optim.lr=0.5",
    ),
    (_words("--lr", "0.1"), "unknown key lr; did you mean optim.lr?"),
    (_words("--optim.lr", "-1"), "optim.lr=-1.0: expected a number above 0"),
    (_words("debug=smoke", "-m", "optim.lr=-1,-2"), "none of 2 runs can start: optim.lr=-1.0: expected a number above 0"),
    (_words("debug=smoke", "--cfg"), "--cfg needs a value (job, hydra, all)"),
    (_words("dataset=folder", "dataset.root=~/nöwhere (1)"), "/nöwhere (1); expected train/<class>"),
    (
        _words("-m", "debug=smoke", "seed=0,1", "hydra.launcher.n_jobs=0"),
        "hydra.launcher.n_jobs=0: expected a whole number of 1 or more",
    ),
    (
        _words("sweep=digits", "sweeper=asha", "hydra.sweeper.reduction_factor=1"),
        "hydra.sweeper.reduction_factor=1: expected a whole",
    ),
    (_words("sweep=digits", "sweeper=asha", "phase=final"), "sweeper=asha needs phase=search"),
    # the other commands
    (["gift_vit.evaluate", "run=run", "device=gpu"], "device=gpu: expected auto, cpu, cuda or cuda:<index>"),
    (["gift_vit.evaluate", "run=run", "split=tset"], "dataset digits has no tset split (it has train, val, test)"),
    (["gift_vit.evaluate", f"run={LONG}"], "cannot be read"),
    (["gift_vit.merge", "run=run", f"out={LONG}.pth"], "File name too long"),
    (
        ["gift_vit.explain", "run=run", "batch_size=99999999999999999999"],
        "batch_size=99999999999999999999: expected a number below",
    ),
    (["gift_vit.evaluate", "run=${nope}"], "${nope} is no run folder"),
    (["gift_vit.evaluate", "run=[a"], "[a is no run folder"),
    (["gift_vit.evaluate", "run=1.10"], "1.10 is no run folder"),
    (["gift_vit.explain", "run=run", "layers=[a"], "layers=[a: while parsing"),
    (["gift_vit.explain", "run=run", "layers=${nope}"], "Interpolation key 'nope' not found"),
    (["experiments.tables", "root=[{a: 1}]"], "root=[{'a': '1'}]: expected one, or several as [a,b]"),
    (["experiments.tables", "root=2026_11_29"], "no folder 2026_11_29; "),
    (["experiments.tables", "root=[.,1e3]"], "no folder 1e3; "),
    (["experiments.ensemble", "runs=[2026_11_29,b]"], "2026_11_29 is no run folder"),
    (["experiments.bench", "rounds=0"], "rounds=0: expected 1 or more"),
    (["experiments.tables", "root=twice"], RESULTS["twice"][1]),
    *((words, "cannot write /proc/nothing/") for words in WRITING),
    *((words, "the home folder that ~no_such_user stands for is not known; write .") for words in HOMELESS),
    (["gift_vit.import_gift", "~/none.pth.tar", "dataset=cub", "out=new"], f"no checkpoint {Path.home()}/none.pth.tar"),
    (["experiments.select", "root=~/none"], f"no folder {Path.home()}/none; "),
    *OF_TEXTS,
    *(
        (["gift_vit.merge", f"run={name}", "out=a.pth"], message)
        for name, (_, message) in (DAMAGED | RESULTS).items()
        if name in APART
    ),
]
MISTAKES |= {" ".join(words)[:100]: (words, message) for words, message in TYPED}
TRACED = [[TRAIN, "dataset=cubb"], [TRAIN, "optim.lr=-1"], ["gift_vit.evaluate", "run=nowhere"]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a finished run, and damaged copies of it."""
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(ROOT / "tests/runs/old_run/final/digits/gift/vit_mini/old", place / "run")
    for file, damages in (("config.yaml", DAMAGED), ("result.json", RESULTS)):
        for name, (content, _) in damages.items():
            shutil.copytree(place / "run", place / name)
            (place / name / file).write_bytes(content)
    return place


@pytest.fixture(scope="module")
def helps(place: Path) -> dict[str, Answer]:
    asked = [*([command, "--help"] for command in COMMANDS), *([command, "nonsense=1"] for command in STARTED)]
    asked += [words for words, _ in MISTAKES.values()]
    return {" ".join(words): answer for words, answer in zip(asked, answers(asked, place), strict=True)}


def test_the_commands_are_found() -> None:
    assert {TRAIN, "gift_vit.explain", "data_prep.vtab", "experiments.tables"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_readable(helps: dict[str, Answer], command: str) -> None:
    answer = helps[f"{command} --help"]
    assert (answer.returncode, answer.imported, answer.stderr) == (0, [], "")
    assert f"python -m {command}" in answer.stdout
    # Hydra puts all choices of a group on one line
    lines = [line for line in answer.stdout.splitlines() if not re.match(r"(backbone|dataset|method|sweep): ", line)]
    assert max(map(len, lines)) <= 140
    assert len(lines) <= 90
    assert not re.search(r"^    \w+( +\((required|default: .*)\))?$", answer.stdout, re.MULTILINE), "one that is not explained"


@pytest.mark.parametrize("command", STARTED)
def test_an_unknown_word_is_one_line(helps: dict[str, Answer], command: str) -> None:
    answer = helps[f"{command} nonsense=1"]
    assert (answer.returncode, answer.imported, answer.stdout) == (2, [], "")
    expected = "unknown key nonsense" if command == TRAIN else "unexpected argument 'nonsense=1': expected "
    assert answer.stderr.startswith(f"error: {expected}")
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - set(STARTED)))
def test_an_unknown_word_is_one_line_of_every_other_command(
    name: str, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process."""
    is_folder = (ROOT / name.replace(".", "/")).is_dir()
    code = command(import_module(f"{name}.__main__" if is_folder else name), "nonsense=1")
    told = capsys.readouterr()
    assert (code, told.out, told.err.count("\n")) == (2, "", 1)
    assert told.err.startswith("error: unexpected argument 'nonsense=1': expected ")


@pytest.mark.parametrize("name", [name for name in (*DAMAGED, *RESULTS) if name not in APART])
def test_a_damaged_run_is_one_line(
    name: str, place: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    assert command(merge, f"run={name}", "out=a.pth") == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n"), told.err.startswith("error: ")) == ("", 1, True)
    assert (DAMAGED | RESULTS)[name][1] in told.err


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2_and_needs_no_torch(helps: dict[str, Answer], place: Path, name: str) -> None:
    words, message = MISTAKES[name]
    answer = helps[" ".join(words)]
    assert (answer.returncode, answer.imported, answer.stdout) == (2, [], ""), answer.stderr
    assert answer.stderr.startswith("error: ")
    assert message in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert not re.search(r"(\S+: )\1", answer.stderr), "what was given is said once"
    assert {path.name for path in place.iterdir()} == {"run", *DAMAGED, *RESULTS}, "nothing is left on disk"
    assert len(list(place.rglob("*"))) == 6 * (1 + len(DAMAGED) + len(RESULTS))


def test_a_traceback_is_shown_where_it_is_asked_for(place: Path) -> None:
    for answer in answers(TRACED, place, {"GIFT_VIT_TRACEBACK": "1"}):
        assert answer.returncode == 2
        assert "Traceback" in answer.stderr
        assert "error: " in answer.stderr
