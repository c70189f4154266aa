import json
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb

from experiments import dashboard
from experiments.dashboard import DashboardConfig, make_dashboard, read_definition
from gift_vit.compose import compose_config
from gift_vit.config import load_config
from gift_vit.errors import ConfigError, RunError
from gift_vit.record import Call
from gift_vit.run import execute
from tests.tracking.offline_run import Recorded, recorded, without_account

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its models use pydantic's older names
    pytest.importorskip("wandb_workspaces.reports.v2", reason="wandb-workspaces is not installed")
    from wandb_workspaces import expr
    from wandb_workspaces.reports.v2 import interface as wr
    from wandb_workspaces.reports.v2 import internal

Define = Callable[..., wr.Report]
EXPECTED_CHARTS = 4 + 2 + 5 + 4 + 3
ON_CUDA_ONLY = {"cost/peak_memory_mib"}


@pytest.fixture(scope="module", autouse=True)
def wandb_on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with without_account(tmp_path_factory.mktemp("home")):
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, wandb_on: None) -> dict[str, Recorded]:
    """A real offline run of each phase, as W&B's own file holds it."""
    found = {}
    for phase, method in (("final", "gift"), ("search", "vpt_deep")):
        root = tmp_path_factory.mktemp(phase)
        words = ["debug=smoke", f"method={method}", f"phase={phase}", "tracker=wandb", f"paths.output_root={root}"]
        cfg = load_config(compose_config(words))
        execute(cfg, Call("", []))
        found[phase] = recorded(cfg.folder)
    return found


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


def drawn(panel: object) -> tuple[list[object], list[object]]:
    """What a panel takes from every run, and what it takes from each of their epochs."""
    if isinstance(panel, wr.BarPlot):
        assert panel.groupby is not None
        return [wr.SummaryMetric(metric(panel)), panel.groupby], []
    if isinstance(panel, wr.LinePlot):
        return [panel.groupby], [panel.x, *panel.y]
    if isinstance(panel, wr.ScatterPlot):
        legend = str(panel.legend_template).replace("}", "").split("${config:")[1:]
        return [panel.x, panel.y, *(wr.Config(word.split()[0]) for word in legend)], []
    assert isinstance(panel, wr.ParallelCoordinatesPlot)
    return [column.metric for column in panel.columns], []


def is_logged(field: object, run: Recorded) -> bool:
    if field == "Group":  # W&B's own
        return bool(run.run.run_group)
    if isinstance(field, wr.Config):
        return run.config.get(field.name) is not None
    assert isinstance(field, wr.SummaryMetric)
    return field.name in run.summary and (run.summary[field.name] is not None or field.name in ON_CUDA_ONLY)


def test_every_chart_draws_what_runs_of_its_phase_log(define: Define, runs: dict[str, Recorded]) -> None:
    charts = 0
    for grid in grids(define()):
        run = runs[str(filters(grid)["phase"])]
        assert filters(grid).keys() <= run.config.keys()
        for panel in grid.panels:
            of_run, of_epochs = drawn(panel)
            assert [field for field in of_run if not is_logged(field, run)] == []
            names = [field.name for field in of_epochs if isinstance(field, wr.Metric)]
            assert len(names) == len(of_epochs)
            assert [name for name in names if name not in run.history[-1]] == []
            charts += 1
    assert charts == EXPECTED_CHARTS


def test_the_run_tables_name_what_is_logged(define: Define, runs: dict[str, Recorded]) -> None:
    logged = {f"config:{name}.value" for run in runs.values() for name in run.config}
    for grid in grids(define()):
        assert len(grid.runsets[0].pinned_columns) >= 8
        assert set(grid.runsets[0].pinned_columns) <= logged


def test_recorded_runs_say_what_they_are(runs: dict[str, Recorded]) -> None:
    run = runs["search"]
    assert (run.run.run_group, run.run.job_type) == ("digits/vpt_deep", "search")
    assert list(run.run.tags) == ["clean", "mini", "test_vit", "seed0"]
    fields = {name: value for name, value in run.config.items() if name not in {"config", "_wandb"}}
    assert fields == {
        **{"dataset": "digits", "benchmark": "mini", "method": "vpt_deep", "kind": "vpt", "backbone": "test_vit"},
        **{"protocol": "clean", "phase": "search", "seed": 0, "lr": 0.001, "weight_decay": 0.0001, "num_tokens": 5},
    }
    assert runs["final"].config["rank"] == 16
    assert runs["final"].summary["params/adapter"] == 2 * 64 * 16


def test_filters_take_the_runs_asked_for(define: Define, runs: dict[str, Recorded]) -> None:
    chosen = {"protocol": "gift_paper", "dataset": "cub", "backbone": "vit_b16_in21k"}
    report = define(**chosen, methods=["gift", "lora"])
    found = [filters(grid) for grid in grids(report)]
    final, search = {**chosen, "phase": "final"}, {**chosen, "phase": "search"}
    assert found == [final, search, {**search, "method": "gift"}, {**search, "method": "lora"}, final, final, search]
    assert report.description == "Runs with protocol gift_paper, dataset cub, backbone vit_b16_in21k."


def test_aggregates_and_axes(define: Define) -> None:
    panels = [panel for grid in grids(define(methods=["lora"])) for panel in grid.panels]
    bars = {panel.title: (metric(panel), panel.groupby_aggfunc) for panel in panels if isinstance(panel, wr.BarPlot)}
    assert bars["Test top-1 (%) per dataset and method, mean over seeds"] == ("test_top1", "mean")
    assert bars["Best validation top-1 (%) per dataset and method"] == ("val_top1", "max")
    points = [panel for panel in panels if isinstance(panel, wr.ScatterPlot)]
    assert [(panel.x, panel.y) for panel in points] == [
        (wr.SummaryMetric("params/adapter"), wr.SummaryMetric("test_top1")),
        (wr.SummaryMetric("cost/adapter_bytes"), wr.SummaryMetric("test_top1")),
        (wr.Config("lr"), wr.SummaryMetric("val_top1")),
    ]
    assert all(panel.log_x for panel in points)
    places = [panel.layout for panel in grids(define())[0].panels if isinstance(panel, wr.Panel)]
    assert {(place.x, place.y) for place in places} == {(0, 0), (12, 0), (0, 8), (12, 8)}


def test_a_definition_comes_back_unchanged(define: Define, tmp_path: Path) -> None:
    report = define(dataset="cub")
    first = (tmp_path / "dashboard.json").read_text()
    dashboard.write_definition(report, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == first
    assert report.width == "fluid"


class Server(ThreadingHTTPServer):
    """Answers what W&B's client asks while it saves a report; keeps what was saved."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.saved: list[dict[str, Any]] = []
        self.refuses = False

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
        answer = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            answer = self.server.answer(asked["query"], asked.get("variables") or {})
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    wandb.teardown()  # W&B reads its environment once per session
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield server
        wandb.teardown()
        server.shutdown()


def test_a_report_is_created_in_the_project(server: Server, define: Define, tmp_path: Path) -> None:
    define(dataset="cub")
    for cfg, entity, project in (
        (DashboardConfig(dataset="cub"), "me", "gift-vit"),
        (DashboardConfig(entity="team", project="other", definition=str(tmp_path / "dashboard.json")), "team", "other"),
    ):
        address = make_dashboard(cfg)
        assert address.startswith(f"http://127.0.0.1:{server.server_address[1]}/{entity}/{project}/reports/")
        saved = server.saved.pop()
        assert (saved["entityName"], saved["projectName"], saved["type"]) == (entity, project, "runs")
        spec = internal.Spec.model_validate_json(saved["spec"])
        blocks = [block for block in spec.blocks if isinstance(block, internal.PanelGrid)]
        assert len(blocks) == 2 + 5 + 1 + 2
        for runs in (runs for block in blocks for runs in block.metadata.run_sets):
            assert runs.project == internal.Project(id=f"id of {project}", name=project, entity_name=entity)
    assert server.saved == []


def test_no_such_project(server: Server) -> None:
    with pytest.raises(
        ConfigError, match=r"^me has no W&B project 'gift-vitt'; did you mean gift-vit\?; give entity=… project=…$"
    ):
        make_dashboard(DashboardConfig(project="gift-vitt"))
    with pytest.raises(ConfigError, match=r"^nobody has no W&B project 'gift-vit'; give"):
        make_dashboard(DashboardConfig(entity="nobody"))
    assert server.saved == []


def test_a_refusal_is_one_line(server: Server) -> None:
    server.refuses = True
    with pytest.raises(RunError, match="W&B did not take the report"):
        make_dashboard(DashboardConfig())


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dashboard", *words])
    with pytest.raises(SystemExit) as stopped:
        dashboard.main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_without_a_login(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "no W&B login: run `wandb login`, set WANDB_API_KEY, or write a definition with out=dashboard.json" in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read definition"),
        (b"\xff\xfe", "cannot read definition"),
        (b"{", "is no report"),
        (b"[]", "is no report"),
        (b'{"spec": {"blocks": 3}}', "is no report"),
        (b"{}", "holds no charts"),
    ],
)
def test_unreadable_definitions(
    content: bytes | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.json"
    if content is not None:
        file.write_bytes(content)
    assert command(monkeypatch, f"definition={file}") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err
    assert str(file) in err
    assert "expected a file that `python -m experiments.dashboard out=…` wrote" in err


@pytest.mark.parametrize("argument", [{"protocol": "gift_paper"}, {"dataset": "cub"}, {"methods": ["gift"]}, {"out": "b.json"}])
def test_a_definition_cannot_be_narrowed(argument: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=rf"definition=a\.json says already what is drawn; leave out {next(iter(argument))}=…"
    ):
        DashboardConfig(definition="a.json", **argument)
