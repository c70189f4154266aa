"""The model card of a run: README.md of its repository, with its numbers as ``model-index``."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from gift_vit.config.compose import flatten
from gift_vit.results.cells import all_top1, top1_text
from gift_vit.results.names import method_name
from gift_vit.runs.result import PREDICTIONS, Result

CITATION = """@article{gift,
  title   = {Generative Parameter-Efficient Fine-Tuning},
  author  = {Savadikar, Chinmay and Song, Xi and Wu, Tianfu},
  journal = {arXiv preprint arXiv:2312.00700},
  year    = {2023}
}"""
# names of metrics at the Hub, where they are others
_METRICS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr", "exact": "exact_match"}
_GLUE = "nyu-mll/glue"
_SHOWN = ("optim", "trainer")  # sections of the configuration that a reader of numbers asks for first


@dataclass(frozen=True)
class _Task:
    """How the Hub calls what a model does, and how a person uses it."""

    tag: str
    library: str
    head: str
    use: str
    model: str


_IMAGES = _Task(
    "image-classification",
    "timm",
    "An adapter and a classification head",
    "python -m gift_vit.predict run={run} images=photos/\n",
    "a timm model with the adapter",
)
_MERGE = 'python -m gift_vit.merge run={run} out=merged  # then transformers.%s.from_pretrained("merged")\n'
_CLASSES = _Task(
    "text-classification",
    "transformers",
    "An adapter and a head",
    _MERGE % "AutoModelForSequenceClassification",
    "model.tokenizer, and in model.model transformers' own with the adapter",
)
_ANSWERS = replace(_CLASSES, tag="text-generation", head="An adapter", use=_MERGE % "AutoModelForCausalLM")


def _is_whole(result: Result) -> bool:
    """Whether the adapter's file holds all weights of the backbone, as they were fine-tuned."""
    return result.run.kind == "full"


def _own_weights(result: Result, of_folder: bool) -> str:
    """What to do about pretrained weights that no hub has."""
    backbone: Any = result.run.config["backbone"]
    key, what = ("model", "folder") if of_folder else ("weights", "file")
    if not backbone.get(key):
        return ""
    return f"""The pretrained weights are the {what} `{backbone[key]}`, which is not part of it: pull the run, and write
where that {what} lies into its `config.yaml`, as `backbone.{key}`.

"""


def _task_of(result: Result) -> _Task:
    if result.thing == "image":
        return _IMAGES
    task = _ANSWERS if result.metric == "exact" else _CLASSES
    backbone: Any = result.run.config["backbone"]
    return replace(task, use="") if backbone.get("pooling") == "mean" else task  # transformers has no class to merge it into


def model_card(
    result: Result, repo: str, seeds: Sequence[Result] = (), licence: str | None = None, of_folder: bool = False
) -> str:
    """The text of the card.

    Args:
        result: The record, as it is pushed.
        repo: ``user/name``.
        seeds: Records of the same run with other seeds, this one among them; empty: its own numbers alone.
        licence: Of the adapter, as the Hub names licences; None: the person says it later.
        of_folder: Whether the backbone is a folder of the person's, of a model of transformers.
    """
    weights, task = str(result.backbone["weights"]).partition("@")[0], _task_of(result)  # behind @ stands a revision
    base = weights if "/" in weights else None  # others are not on the Hub
    relation = "finetune" if _is_whole(result) else "adapter"
    data = ModelCardData(
        license=licence,
        library_name="gift-vit",  # from which the Hub says how to load it: the backbone's library cannot
        tags=sorted({"gift-vit", "peft", task.library, result.run.kind}),
        pipeline_tag=task.tag,
        datasets=[_GLUE] if result.run.benchmark == "glue" else None,
        metrics=[_metric_id(result)],
        model_name=repo.partition("/")[2],
        eval_results=_eval_results(result, seeds),
        base_model=base,
        base_model_relation=relation if base else None,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(result, repo, seeds, of_folder)}"))


def _eval_results(result: Result, seeds: Sequence[Result]) -> list[EvalResult]:
    name = f"{result.score_name[:1].upper()}{result.score_name[1:]} (%)"
    scores = {name: result.score}
    if len(seeds) > 1:
        top1 = all_top1(seeds)
        count = f"over {len(top1)} seeds"
        scores |= {f"{name}, mean {count}": fmean(top1), f"{name}, standard deviation {count}": stdev(top1)}
    tag = _task_of(result).tag
    shared: dict[str, Any] = {
        "task_type": tag,
        "task_name": tag.replace("-", " ").capitalize(),
        "dataset_type": result.data.name,
        "dataset_name": result.data.name,
        "dataset_split": result.scored_on,
        "metric_type": _metric_id(result),
    }
    if result.run.benchmark == "glue":  # its dev, whatever the protocol takes it for
        shared |= {"dataset_type": _GLUE, "dataset_config": result.data.name.removeprefix("glue_")}
        shared["dataset_split"] = "validation"
    known = {name: value for name, value in scores.items() if value is not None}
    return [EvalResult(metric_name=name, metric_value=value, **shared) for name, value in known.items()]


def _metric_id(result: Result) -> str:
    metric = result.metric or "accuracy"
    return _METRICS.get(metric, metric)


def _text(result: Result, repo: str, seeds: Sequence[Result], of_folder: bool) -> str:
    run, data, params, task = result.run, result.data, result.params, _task_of(result)
    counted = f"{data.num_classes} classes, " if result.of_classes else ""
    classes = f"\n\nClasses: {_in_markdown(', '.join(data.class_names))}." if data.class_names and result.of_classes else ""
    changes = "".join(
        f"\n  - `{key}`: {used} (the protocol says {ruled})" for key, (ruled, used) in run.protocol_changes.items()
    )
    dataset: Any = run.config["dataset"]
    cut = f", each cut to {dataset['max_length']} tokens" if dataset.get("max_length") else ""
    part = "part of it: its licence holds" if _is_whole(result) else "not part of it"
    settings = "\n".join(
        f"{key}: {value}" for section in ("method", *_SHOWN) for key, value in flatten({section: run.config.get(section) or {}})
    )
    return f"""# {_in_markdown(f"{method_name(run.method)} on {data.name}")}

{"All weights" if _is_whole(result) else task.head} for `{result.backbone["architecture"]}`, trained with
[gift-vit](https://arxiv.org/abs/2312.00700) {run.gift_vit_version}. The backbone is {part}.

## Numbers

{_table(result, seeds)}

{_predictions(result)}

## How it was made

- Method: {method_name(run.method)} (`{run.kind}`), {params.adapter:,} parameters, {params.percent:.3f} % of the backbone's
  {params.backbone:,}, and a head of {params.head:,}
- Backbone: `{result.backbone["architecture"]}`, weights `{result.backbone["weights"]}`, fingerprint
  `{result.backbone["weights_sha256"]}`
- Protocol: `{run.protocol}`, phase {run.phase}, seed {run.seed}{", except for" + changes if changes else ""}
- Data: {data.name}, {counted}trained on {data.train_split} ({data.train_images:,} {result.thing}s{cut}), fingerprint
  `{data.fingerprint}`{classes}

```text
{run.command}
```

```yaml
{settings}
```

## How to use it

{_own_weights(result, of_folder)}```bash
{task.use.format(run=f"hf://{repo}")}python -m gift_vit.evaluate run=hf://{repo} dataset_root=<folder of the data>
python -m gift_vit.pull repo={repo} out={repo.partition("/")[2]}
```

```python
from gift_vit.runs import Run

model = Run.open("hf://{repo}").model()  # {task.model}
```

## Licence of the data

Not stated here: whoever shares this adapter says under which licence {data.name} may be used.

## Citation

```bibtex
{CITATION}
```
"""


def _table(result: Result, seeds: Sequence[Result]) -> str:
    own, score = result.score, result.score_name
    rows = [f"| {score}, seed {result.run.seed} | {'not scored' if own is None else f'{own:.2f} %'} |"]
    if len(seeds) > 1:
        top1, listed = all_top1(seeds), ", ".join(str(each.run.seed) for each in seeds)
        rows.append(f"| {score}, mean ± standard deviation of seeds {listed} | {top1_text(fmean(top1), stdev(top1))} % |")
    rows += [f"| {name} | {value:.2f} % |" for name, value in result.further.items()]
    for name, value in (result.predictions.scores if result.predictions else {}).items():
        if value is not None and name != "top1":
            rows.append(f"| {name} | {value:.4f} |")
    return "\n".join([f"| {result.scored_on} | |", "|---|---|", *rows])


def _predictions(result: Result) -> str:
    digest = (result.files or {}).get(PREDICTIONS)
    if digest is None:
        return "No predictions were kept."
    return f"The predictions behind them, `{PREDICTIONS}`, have SHA-256 `{digest}`."


def _in_markdown(text: str) -> str:
    return "".join(f"\\{character}" if character in "\\`*_[]<>#|" else character for character in text)
