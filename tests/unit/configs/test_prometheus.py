"""The files of configs/prometheus, as promtool and a real Prometheus see them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from service.cli.parser import build_parser
from service.metrics.registry import Metrics
from tests.support.boards import jetson
from tests.support.metrics import families
from tests.support.prometheus import CONFIGS, needs_promtool, promtool
from tests.support.repository import ROOT

RULES = sorted(CONFIGS.glob("*.rules.yml"))
TESTS = sorted(CONFIGS.glob("*.test.yml"))
ALERTS = [
    rule
    for file in RULES
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]
CASES = [
    case
    for file in TESTS
    for test in yaml.safe_load(file.read_text())["tests"]
    for case in test.get("alert_rule_test", [])
]


@needs_promtool
@pytest.mark.parametrize("file", RULES, ids=lambda path: path.name)
def test_promtool_accepts_the_rules(file: Path):
    promtool("check", "rules", "--lint=all", "--lint-fatal", file)


@needs_promtool
@pytest.mark.parametrize("file", TESTS, ids=lambda path: path.name)
def test_the_rules_do_what_their_tests_say(file: Path):
    promtool("test", "rules", file.name)


@needs_promtool
@pytest.mark.parametrize(("name", "flags"), [("prometheus.yml", []), ("agent.yml", ["--agent"])])
def test_promtool_accepts_the_configs(name: str, flags: list[str]):
    promtool("check", "config", *flags, name)


@needs_promtool
def test_promtool_accepts_the_metrics_without_remarks(tmp_path: Path):
    metrics = Metrics(CollectorRegistry(), "1", jetson(tmp_path))
    metrics.expect_model("m")
    assert promtool("check", "metrics", stdin=generate_latest(metrics.registry)) == ""


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: rule["alert"])
def test_each_alert_is_tested_firing_and_not_firing(alert):
    expected = [bool(case.get("exp_alerts")) for case in CASES if case["alertname"] == alert["alert"]]
    assert set(expected) == {True, False}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: rule["alert"])
def test_each_alert_has_a_summary_and_a_runbook(alert):
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}
    assert alert["labels"]["severity"] in ("warning", "critical")
    subcommands = next(a for a in build_parser()._actions if a.choices and "status" in a.choices).choices
    named = re.findall(r"(?:^|[;,] )edged ([\w-]+)", alert["annotations"]["runbook"])
    assert set(named) <= set(subcommands)
    assert named or "systemctl" in alert["annotations"]["runbook"]


def test_each_alert_is_documented():
    text = (ROOT / "docs" / "monitoring.md").read_text()
    assert re.findall(r"^\| (Edged\w+) \|", text, re.MULTILINE) == [alert["alert"] for alert in ALERTS]


def test_the_rules_query_only_metrics_that_exist(tmp_path: Path):
    known = set()
    for name, (family, _) in families(Metrics(CollectorRegistry(), "1", tmp_path)).items():
        suffixes = ("_bucket", "_sum", "_count") if family.type == "histogram" else ("",)
        known |= {name + suffix for suffix in suffixes}
    text = "".join(re.sub(r"#.*", "", file.read_text()) for file in RULES)
    recorded = set(re.findall(r"record: (\S+)", text))
    asked = set(re.findall(r"(?:instance_model:)?edged_\w+(?::\w+)?", text))
    assert asked - recorded <= known
    assert recorded <= set(re.findall(r"instance_model:\S+?:\w+", text))
