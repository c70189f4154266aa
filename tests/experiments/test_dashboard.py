import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb

from experiments import dashboard
from experiments.dashboard import DashboardConfig, make_dashboard, read_definition
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.config import compose_config, load_config
from gift_vit.engine.observer import EpochRecord
from gift_vit.runs.result import METRICS, CostRecord, ParamRecord
from gift_vit.runs.train import Call, train_run
from gift_vit.tracking.fields import config_fields
from tests.data_prep.http_server import serving
from tests.results.conftest import exit_code, refused
from tests.tracking.offline_run import recorded, without_account

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its models use pydantic's older names
    pytest.importorskip("wandb_workspaces.reports.v2", reason="wandb-workspaces is not installed")
    from wandb_workspaces import expr
    from wandb_workspaces.reports.v2 import interface as wr
    from wandb_workspaces.reports.v2 import internal

__all__ = ["without_account"]  # a fixture
Define = Callable[..., wr.Report]
METHOD_OF = {"final": "gift", "search": "vpt_deep"}
SUMMARY = {*METRICS, *(f"params/{f.name}" for f in fields(ParamRecord)), *(f"cost/{f.name}" for f in fields(CostRecord))}
EPOCH = set(EpochRecord.__annotations__)


def words_of(phase: str) -> list[str]:
    return ["debug=smoke", f"method={METHOD_OF[phase]}", f"phase={phase}", "tracker=wandb"]


@cache
def promised(phase: str) -> Mapping[str, object]:
    """The config fields that a run of the phase logs."""
    return config_fields(load_config(compose_config(words_of(phase))).values)


@pytest.fixture
def define(tmp_path: Path) -> Define:
    """Takes arguments; the report as it comes back from the file that the command writes."""

    def written(**arguments: Any) -> wr.Report:
        out = tmp_path / "dashboard.json"
        assert make_dashboard(DashboardConfig(out=str(out), **arguments)) == str(out)
        return read_definition(out)

    return written


def grids(report: wr.Report) -> list[wr.PanelGrid]:
    return [block for block in report.blocks if isinstance(block, wr.PanelGrid)]


def filters(grid: wr.PanelGrid) -> dict[str, object]:
    (runs,) = grid.runsets
    assert isinstance(runs.filters, str)
    found = expr.string_to_filterexpr_list(runs.filters)
    assert {(leaf.key.section, leaf.op) for leaf in found} == {("config", "=")}
    return {leaf.key.name: leaf.value for leaf in found}


def metric(bars: wr.BarPlot) -> str:
    (found,) = bars.metrics
    assert isinstance(found, wr.Metric)
    return found.name


def drawn(panel: object) -> set[str]:
    """What a panel takes of every run (of its configuration or its summary) and of each epoch (a metric)."""
    if isinstance(panel, wr.BarPlot):
        taken = [wr.SummaryMetric(metric(panel)), panel.groupby]
    elif isinstance(panel, wr.LinePlot):
        assert all(isinstance(field, wr.Metric) for field in (panel.x, *panel.y))
        taken = [panel.groupby, panel.x, *panel.y]
    elif isinstance(panel, wr.ScatterPlot):
        taken = [panel.x, panel.y, *map(wr.Config, re.findall(r"\{config:(\w+)", str(panel.legend_template)))]
    else:
        assert isinstance(panel, wr.ParallelCoordinatesPlot)
        taken = [column.metric for column in panel.columns]
    return {f"{type(field).__name__} {getattr(field, 'name', field)}" for field in taken}


def test_every_chart_and_run_table_takes_what_runs_of_its_phase_log(define: Define) -> None:
    of_any = {"str Group"} | {f"SummaryMetric {name}" for name in SUMMARY} | {f"Metric {name}" for name in EPOCH}
    charts = 0
    for grid in grids(define()):
        config = promised(str(filters(grid)["phase"]))
        assert filters(grid).keys() <= config.keys()
        assert len(grid.runsets[0].pinned_columns) >= 8
        assert set(grid.runsets[0].pinned_columns) <= {f"config:{name}.value" for p in METHOD_OF for name in promised(p)}
        for panel in grid.panels:
            assert drawn(panel) <= of_any | {f"Config {name}" for name, value in config.items() if value is not None}
            charts += 1
    assert charts == 4 + 2 + 5 + 4 + 3


@pytest.mark.slow
@pytest.mark.parametrize("phase", METHOD_OF)
def test_runs_log_what_is_promised(phase: str, tmp_path: Path) -> None:
    cfg = load_config(compose_config([*words_of(phase), f"paths.output_root={tmp_path}"]))
    train_run(cfg, Call("", []))
    run = recorded(cfg.folder)
    logged = {name: value for name, value in run.config.items() if name not in {"config", "_wandb"}}
    assert logged == {name: value for name, value in promised(phase).items() if name != "config"}
    unscored = {"search": {"test_top1", "test_loss"}, "final": {"val_top1"}}[phase]
    assert {name for name in SUMMARY if run.summary.get(name) is None} == {*unscored, "cost/peak_memory_mib"}  # on CUDA only
    assert set(run.history[-1]) >= (EPOCH if phase == "search" else EPOCH - {"val_top1", "val_loss"})
    assert (run.run.run_group, run.run.job_type) == (f"digits/{METHOD_OF[phase]}", phase)
    assert list(run.run.tags) == ["clean", "mini", "test_vit", "seed0"]


def test_filters_take_the_runs_asked_for(define: Define, tmp_path: Path) -> None:
    chosen = {"protocol": "gift_paper", "dataset": "cub", "backbone": "vit_b16_in21k"}
    report = define(**chosen, methods=["gift", "lora"])
    found = [filters(grid) for grid in grids(report)]
    final, search = {**chosen, "phase": "final"}, {**chosen, "phase": "search"}
    assert found == [final, search, {**search, "method": "gift"}, {**search, "method": "lora"}, final, final, search]
    assert report.description == "Runs with protocol gift_paper, dataset cub, backbone vit_b16_in21k."
    dashboard.write_definition(report, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "dashboard.json").read_text()
    assert report.width == "fluid"


def test_aggregates_and_axes(define: Define) -> None:
    panels = [panel for grid in grids(define(methods=["lora"])) for panel in grid.panels]
    bars = {panel.title: (metric(panel), panel.groupby_aggfunc) for panel in panels if isinstance(panel, wr.BarPlot)}
    assert bars["Test top-1 (%) per dataset and method, mean over seeds"] == ("test_top1", "mean")
    assert bars["Best validation top-1 (%) per dataset and method"] == ("val_top1", "max")
    test, val = wr.SummaryMetric("test_top1"), wr.SummaryMetric("val_top1")
    sizes = [wr.SummaryMetric(name) for name in ("params/adapter", "cost/adapter_bytes")]
    points = [(panel.x, panel.y, panel.log_x) for panel in panels if isinstance(panel, wr.ScatterPlot)]
    assert points == [*((size, test, True) for size in sizes), (wr.Config("lr"), val, True)]
    places = [panel.layout for panel in grids(define())[0].panels if isinstance(panel, wr.Panel)]
    assert {(place.x, place.y) for place in places} == {(0, 0), (12, 0), (0, 8), (12, 8)}


@pytest.mark.parametrize(
    ("arguments", "score", "field"),
    [
        ({"dataset": "glue_cola"}, "Matthews correlation", "test_top1"),
        ({"dataset": "glue_rte", "backbone": "hf_bert"}, "accuracy", "test_top1"),
        ({"dataset": "glue_stsb", "protocol": "glue_gift"}, "Pearson correlation", "val_top1"),
        ({"protocol": "glue_gift"}, "score", "val_top1"),
        ({"dataset": "commonsense"}, "exact answers", "test_top1"),
        ({"protocol": "commonsense_wegeft"}, "exact answers", "test_top1"),
        ({"backbone": "roberta_large"}, "score", "test_top1"),
        ({"backbone": "hf_minilm"}, "score", "test_top1"),
        ({"dataset": "text_reviews"}, "score", "test_top1"),
    ],
)
def test_runs_on_texts_have_scores_of_their_own(define: Define, arguments: dict[str, str], score: str, field: str) -> None:
    report = define(**arguments, methods=["gift_qv"])
    panels = [panel for grid in grids(report) for panel in grid.panels]
    split = field.partition("_")[0]
    bars = {panel.title: metric(panel) for panel in panels if isinstance(panel, wr.BarPlot)}
    assert bars[f"{split.capitalize()} {score} (%) per dataset and method, mean over seeds"] == field
    assert bars[f"Best validation {score} (%) per dataset and method"] == "val_top1"
    told = [panel.title for panel in panels if isinstance(panel, wr.BarPlot | wr.ScatterPlot | wr.LinePlot)]
    told += [block.text for block in report.blocks if isinstance(block, wr.H2 | wr.P)]
    told += [str(column.display_name) for panel in panels for column in getattr(panel, "columns", ())]
    assert not [text for text in told if re.search("top-?1", str(text))]
    assert ("Accuracy" in told) == (score == "accuracy")
    assert any("no test number" in str(text) for text in told) == (split == "val")


class Server(ThreadingHTTPServer):
    """Answers what W&B's client asks while it saves a report; keeps what was saved."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.saved: list[dict[str, Any]] = []
        self.refuses = False
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" in query:
            if self.refuses:
                return {"errors": [{"message": "permission\ndenied"}]}
            self.saved.append(variables)
            view = {"id": "Vmlldzox", "name": variables["name"], "displayName": variables["displayName"]}
            return {"data": {"upsertView": {"view": {**view, "spec": variables["spec"]}, "inserted": True}}}
        if "models(" in query:
            names = ["gift-vit", "other"] if variables["entity"] in ("me", "team") else []
            fields = {"createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None}
            nodes = [{"node": {"id": name, "name": name, "entityName": "me", **fields}, "cursor": ""} for name in names]
            return {"data": {"models": {"edges": nodes, "pageInfo": {"endCursor": "", "hasNextPage": False}}}}
        if "internalId" in query:
            return {"data": {"project": {"id": "p", "internalId": f"id of {variables['projectName']}"}}}
        viewer = {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
        return {"data": {"viewer": viewer}}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        assert isinstance(self.server, Server)
        asked = json.loads(body) if self.path == "/graphql" else None
        answer = self.server.answer(asked["query"], asked.get("variables") or {}) if asked else {}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    wandb.teardown()  # W&B reads its environment once per session
    with serving(Server()) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield server
        wandb.teardown()


@pytest.mark.slow
def test_a_report_is_created_in_the_project(server: Server, define: Define, tmp_path: Path) -> None:
    define(dataset="cub")
    for cfg, entity, project in (
        (DashboardConfig(dataset="cub"), "me", "gift-vit"),
        (DashboardConfig(entity="team", project="other", definition=str(tmp_path / "dashboard.json")), "team", "other"),
    ):
        assert make_dashboard(cfg).startswith(f"{server.address}/{entity}/{project}/reports/")
        saved = server.saved.pop()
        assert (saved["entityName"], saved["projectName"], saved["type"]) == (entity, project, "runs")
        spec = internal.Spec.model_validate_json(saved["spec"])
        blocks = [block for block in spec.blocks if isinstance(block, internal.PanelGrid)]
        assert len(blocks) == 2 + 5 + 1 + 2
        for runs in (runs for block in blocks for runs in block.metadata.run_sets):
            assert runs.project == internal.Project(id=f"id of {project}", name=project, entity_name=entity)
    assert server.saved == []


@pytest.mark.slow
def test_what_the_server_does_not_take_is_one_line(server: Server) -> None:
    misspelt = r"^me has no W&B project 'gift-vitt'; did you mean gift-vit\?; give entity=… project=…$"
    nobody = "^nobody has no W&B project 'gift-vit'; give"
    for cfg, message in ((DashboardConfig(project="gift-vitt"), misspelt), (DashboardConfig(entity="nobody"), nobody)):
        with pytest.raises(ConfigError, match=message):
            make_dashboard(cfg)
    server.refuses = True
    with pytest.raises(RunError, match="W&B did not take the report"):
        make_dashboard(DashboardConfig())
    assert server.saved == []


command = partial(exit_code, dashboard.main)


def test_without_a_login(capsys: pytest.CaptureFixture[str]) -> None:
    expected = "no W&B login: run `wandb login`, set WANDB_API_KEY, or write a definition with out=dashboard.json"
    assert expected in refused(command, capsys)


def test_a_name_that_may_be_misspelt_is_told(define: Define, caplog: pytest.LogCaptureFixture) -> None:
    define(dataset="cubb", methods=["gift", "giftt"], backbone="my_own")
    own = "unless it is your own; did you mean"
    told = [message for message in caplog.messages if message.startswith("there is no ")]
    assert told == [f"there is no dataset=cubb, {own} cub?", f"there is no method=giftt, {own} gift?"]


UNREADABLE = {
    "cannot read definition=": (None, b"\xff\xfe"),
    "is no report": (b"{", b"[]", b'{"spec": {"blocks": 3}}'),
    "holds no charts": (b"{}",),
}


def test_without_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    said = refused(command, capsys, f"out={tmp_path / 'dashboard.json'}")
    assert "the W&B report needs wandb_workspaces, which is not installed; type: pip install 'gift-vit[dashboard]'" in said


def test_unreadable_definitions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.json"
    for message, content in ((message, content) for message, contents in UNREADABLE.items() for content in contents):
        if content is not None:
            file.write_bytes(content)
        said = refused(command, capsys, f"definition={file}")
        for text in (message, str(file), "expected a file that `python -m experiments.dashboard out=…` wrote"):
            assert text in said


def test_a_definition_cannot_be_narrowed(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("protocol=gift_paper", "dataset=cub", "methods=[gift]", "out=b.json"):
        expected = f"definition=a.json says already what is drawn; leave out {word.partition('=')[0]}=…"
        assert expected in refused(command, capsys, "definition=a.json", word)
