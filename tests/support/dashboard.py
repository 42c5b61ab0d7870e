"""The Grafana dashboard that edged ships."""

from __future__ import annotations

import json

from tests.support.repository import ROOT

FOLDER = ROOT / "configs" / "grafana"
DASHBOARD = json.loads((FOLDER / "edged.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
