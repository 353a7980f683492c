"""The dashboard and the alert rules, without a run: test_watched_run.py has one."""

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


def promtool(*words: str | Path, given: str = "") -> None:
    done = subprocess.run([program("promtool"), *map(str, words)], input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_where_they_must_and_nowhere_else() -> None:
    promtool("check", "rules", DEPLOY / "alerts.yaml")
    promtool("test", "rules", Path(__file__).parent / "alerts_test.yaml")


def test_every_alert_is_tested_and_says_what_to_do() -> None:
    tests = yaml.safe_load((Path(__file__).parent / "alerts_test.yaml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    anchors = {title.lower() for title in re.findall(r"^### (\w+)$", DOCS, re.MULTILINE)}
    for rule in RULES:
        fires = {bool(case.get("exp_alerts")) for case in cases if case["alertname"] == rule["alert"]}
        assert fires == {True, False}, rule["alert"]
        assert {"summary", "description", "runbook_url"} <= rule["annotations"].keys()
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert (page, anchor in anchors) == ("docs/monitoring.md", True), rule["alert"]


def test_the_example_configuration_is_one() -> None:
    promtool("check", "config", "--syntax-only", DEPLOY / "prometheus.yaml")


def test_every_expression_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "1m")}
        for number, expression in enumerate(EXPRESSIONS)
    ]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yaml")


def test_the_dashboard_and_the_alerts_ask_for_metrics_that_there_are() -> None:
    there = {f"ray_{metric.info['name']}" for metric in METRICS} | set(OUTCOME_METRICS)
    asked = {
        name.removesuffix("_bucket")
        for expression in [*EXPRESSIONS, *(rule["expr"] for rule in RULES)]
        for name in re.findall(r"\b(?:ray_)?nightshift_[a-z_0-9]+(?!\")\b", re.sub(r'"[^"]*"', "", expression))
    }
    assert asked - there == set()
    assert len(asked) > 20


def test_metrics_are_named_as_prometheus_wants() -> None:
    lines = []
    for metric in METRICS:
        name, kind = f"ray_{metric.info['name']}", type(metric).__name__.lower()
        lines += [f"# HELP {name} {metric.info['description']}", f"# TYPE {name} {kind}"]
        lines += [f"{name} 1"] if kind != "histogram" else [f'{name}_bucket{{le="+Inf"}} 1', f"{name}_sum 1", f"{name}_count 1"]
    for name, meaning in OUTCOME_METRICS.items():
        lines += [f"# HELP {name} {meaning}", f"# TYPE {name} gauge", f"{name} 1"]
    promtool("check", "metrics", given="\n".join(lines) + "\n")


def test_the_documentation_has_each_metric_with_its_tags() -> None:
    rows = dict(re.findall(r"^\| `(nightshift_\w+)` \| (.+)$", DOCS, re.MULTILINE))
    assert rows.keys() == {metric.info["name"] for metric in METRICS} | set(OUTCOME_METRICS)
    for metric in METRICS:
        kind, tags = (cell.strip() for cell in rows[metric.info["name"]].split("|")[:2])
        assert kind == type(metric).__name__.lower()
        assert set(re.findall(r"`(\w+)`", tags)) == set(metric.info["tag_keys"]) - {"name"}, metric.info["name"]


# What Grafana's classic dashboard model asks for: grafana.com/docs, "Dashboard JSON model"


def cells(panel: dict[str, Any]) -> Iterator[tuple[int, int]]:
    at = panel["gridPos"]
    return itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"]))


def test_panels_have_a_place_of_their_own() -> None:
    everywhere = [cell for panel in DASHBOARD["panels"] for cell in cells(panel)]
    assert len(everywhere) == len(set(everywhere))
    assert {x for x, _ in everywhere} == set(range(24))
    identities = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(identities) == len(set(identities))


def test_the_dashboard_is_imported_with_any_data_source() -> None:
    assert (DASHBOARD["id"], DASHBOARD["uid"], DASHBOARD["schemaVersion"]) == (None, "nightshift", 39)
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    sources = [variables["name"], *PANELS, *(target for panel in PANELS for target in panel["targets"])]
    assert {source["datasource"]["uid"] for source in sources} == {"${datasource}"}
    used = {name for expression in EXPRESSIONS for name in re.findall(r"\$(\w+)", expression)}
    assert used == {"name", "__rate_interval"}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["id"]))
def test_panel(panel: dict[str, Any]) -> None:
    assert panel["type"] in ("timeseries", "stat", "gauge")
    assert panel["title"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    references = [target["refId"] for target in panel["targets"]]
    assert references == sorted(set(references)) != []
    by = [re.findall(r"by \(([^)]+)\)", target["expr"])[0].split(", ") for target in panel["targets"]]
    for target, labels in zip(panel["targets"], by, strict=True):  # each label that tells series apart is in the legend
        assert {f"{{{{{label}}}}}" for label in labels if label != "le"} <= set(re.findall(r"{{\w+}}", target["legendFormat"]))
