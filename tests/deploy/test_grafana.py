"""The dashboard and the alert rules, checked without a run. test_monitored_run.py checks them with one."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_server import DEPLOY, program

from pipeline.monitoring.metrics import METRICS
from pipeline.monitoring.pushgateway import OUTCOME_METRICS

DOCS = (DEPLOY.parents[1] / "docs" / "monitoring.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "nightshift.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = [rule for group in yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]


def promtool(*arguments: str | Path, stdin: str = "") -> None:
    result = subprocess.run([program("promtool"), *map(str, arguments)], input=stdin, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_alerts_fire_exactly_when_they_should() -> None:
    promtool("check", "rules", DEPLOY / "alerts.yaml")
    promtool("test", "rules", Path(__file__).parent / "alerts_test.yaml")


def test_every_alert_is_tested_and_documented() -> None:
    tests = yaml.safe_load((Path(__file__).parent / "alerts_test.yaml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    anchors = {title.lower() for title in re.findall(r"^### (\w+)$", DOCS, re.MULTILINE)}
    for rule in RULES:
        fires = {bool(case.get("exp_alerts")) for case in cases if case["alertname"] == rule["alert"]}
        assert fires == {True, False}, rule["alert"]
        assert {"summary", "description", "runbook_url"} <= rule["annotations"].keys()
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert (page, anchor in anchors) == ("docs/monitoring.md", True), rule["alert"]


def test_the_example_configuration_is_valid() -> None:
    promtool("check", "config", "--syntax-only", DEPLOY / "prometheus.yaml")


def test_every_expression_of_the_dashboard_is_valid(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "1m")}
        for number, expression in enumerate(EXPRESSIONS)
    ]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yaml")


def test_dashboard_and_alerts_use_existing_metrics() -> None:
    existing = {f"ray_{metric.info['name']}" for metric in METRICS} | set(OUTCOME_METRICS)
    used = {
        name.removesuffix("_bucket")
        for expression in [*EXPRESSIONS, *(rule["expr"] for rule in RULES)]
        for name in re.findall(r"\b(?:ray_)?nightshift_[a-z_0-9]+(?!\")\b", re.sub(r'"[^"]*"', "", expression))
    }
    assert used - existing == set()
    assert len(used) > 20


def test_metric_names_follow_the_conventions_of_prometheus() -> None:
    lines = []
    for metric in METRICS:
        name, metric_type = f"ray_{metric.info['name']}", type(metric).__name__.lower()
        lines += [f"# HELP {name} {metric.info['description']}", f"# TYPE {name} {metric_type}"]
        lines += (
            [f"{name} 1"]
            if metric_type != "histogram"
            else [f'{name}_bucket{{le="+Inf"}} 1', f"{name}_sum 1", f"{name}_count 1"]
        )
    for name, meaning in OUTCOME_METRICS.items():
        lines += [f"# HELP {name} {meaning}", f"# TYPE {name} gauge", f"{name} 1"]
    promtool("check", "metrics", stdin="\n".join(lines) + "\n")


def test_the_documentation_lists_each_metric_with_its_tags() -> None:
    rows = dict(re.findall(r"^\| `(nightshift_\w+)` \| (.+)$", DOCS, re.MULTILINE))
    assert rows.keys() == {metric.info["name"] for metric in METRICS} | set(OUTCOME_METRICS)
    for metric in METRICS:
        metric_type, tags = (cell.strip() for cell in rows[metric.info["name"]].split("|")[:2])
        assert metric_type == type(metric).__name__.lower()
        assert set(re.findall(r"`(\w+)`", tags)) == set(metric.info["tag_keys"]) - {"name"}, metric.info["name"]


# Grafana's classic dashboard model: grafana.com/docs, "Dashboard JSON model"


def cells(panel: dict[str, Any]) -> Iterator[tuple[int, int]]:
    box = panel["gridPos"]
    return itertools.product(range(box["x"], box["x"] + box["w"]), range(box["y"], box["y"] + box["h"]))


def test_panels_do_not_overlap() -> None:
    covered = [cell for panel in DASHBOARD["panels"] for cell in cells(panel)]
    assert len(covered) == len(set(covered))
    assert {x for x, _ in covered} == set(range(24))
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_the_dashboard_works_with_any_data_source() -> None:
    assert (DASHBOARD["id"], DASHBOARD["uid"], DASHBOARD["schemaVersion"]) == (None, "nightshift", 39)
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    sources = [variables["name"], *PANELS, *(target for panel in PANELS for target in panel["targets"])]
    assert {source["datasource"]["uid"] for source in sources} == {"${datasource}"}
    used = {name for expression in EXPRESSIONS for name in re.findall(r"\$(\w+)", expression)}
    assert used == {"name", "__rate_interval"}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["id"]))
def test_panel_is_complete(panel: dict[str, Any]) -> None:
    assert panel["type"] in ("timeseries", "stat", "gauge")
    assert panel["title"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    references = [target["refId"] for target in panel["targets"]]
    assert references == sorted(set(references)) != []
    labels_of = [re.findall(r"by \(([^)]+)\)", target["expr"])[0].split(", ") for target in panel["targets"]]
    for target, labels in zip(panel["targets"], labels_of, strict=True):  # the legend shows each label of the series
        assert {f"{{{{{label}}}}}" for label in labels if label != "le"} <= set(re.findall(r"{{\w+}}", target["legendFormat"]))
