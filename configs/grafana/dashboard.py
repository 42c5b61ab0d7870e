"""Build edged.json, the dashboard: `pip install grafana-foundation-sdk; python configs/grafana/dashboard.py`.

It is built from code because many panels share a query, and so that a type checker reads it. To add a panel, add it to
its row and run this file. A test runs every query against a real Prometheus.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BarGaugeDisplayMode,
    GraphDrawStyle,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    DataTransformerConfig,
    Panel,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FILE = Path(__file__).with_name("edged.json")
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

Query = tuple[str, str]  # PromQL and legend

# Label matchers of the queries: DEVICE for metrics of the whole device, MODEL for those of one model.
DEVICE = 'job="edged", instance=~"$instance"'
MODEL = f'{DEVICE}, model=~"$model"'


def build() -> dashboard.Dashboard:
    """Return the dashboard."""
    board = (
        dashboard.Dashboard("edged")
        .uid("edged")
        .tags(["edged"])
        .description("Models that edged quantizes and serves on edge devices, and the devices.")
        .time("now-6h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
    )
    for variable in _variables():
        board.with_variable(variable)
    for annotation in _annotations():
        board.annotation(annotation)
    for title, panels in _rows():
        board.with_row(dashboard.Row(title))
        for panel in panels:
            board.with_panel(panel)
    return board


def _rows() -> list[tuple[str, list[Builder[Panel]]]]:
    return [
        ("Overview", _overview()),
        ("Updates", _updates()),
        ("Requests", _requests()),
        ("Models", _models()),
        ("Memory", _memory()),
        ("Device", _device()),
    ]


def _overview() -> list[Builder[Panel]]:
    firing = 'count(ALERTS{alertname=~"Edged.*", alertstate="firing", instance=~"$instance"}) or vector(0)'
    silent = f"time() - max(edged_last_success_timestamp_seconds{{{MODEL}}})"
    live = f"edged_model_info{{{MODEL}}} * on (instance, model) group_left () edged_model_ready{{{MODEL}}}"
    devices = f"edged_device_info{{{DEVICE}}} * on (instance) group_left (version) edged_build_info{{{DEVICE}}}"
    return [
        _number("Devices up", f"sum(up{{{DEVICE}}})", "none"),
        _number("Models ready", f"sum(edged_model_ready{{{MODEL}}})", "none"),
        _number("Time since last successful update", silent, "s"),
        _number("Alerts firing", firing, "none"),
        _table(
            "Live generations", "The generations in service. Value is 1 while the generation is ready.", live, width=14
        ),
        _table("Devices", "Board, machine and version of edged of each device.", devices, width=10),
    ]


def _updates() -> list[Builder[Panel]]:
    def average(metric: str, by: str) -> str:
        took = f"sum by ({by}) (increase({metric}_sum{{{MODEL}}}[$__range]))"
        return f"{took} / (sum by ({by}) (increase({metric}_count{{{MODEL}}}[$__range])) > 0)"

    ended = f"sum by (result) (increase(edged_updates_total{{{MODEL}}}[$__rate_interval]))"
    reasons = f"round(sum by (model, result, reason) (increase(edged_updates_total{{{MODEL}}}[$__range]))) > 0"
    return [
        _bars(
            "Updates by result",
            "Finished updates by outcome, and deferrals.",
            "none",
            (ended, "{{result}}"),
            (f"sum(increase(edged_updates_deferred_total{{{MODEL}}}[$__rate_interval]))", "deferred"),
        ),
        _gauge_bars(
            "Updates by reason", "Finished updates by reason.", "none", (reasons, "{{model}} {{result}} {{reason}}")
        ),
        _gauge_bars(
            "Stages of an update",
            "Mean duration in the selected time range.",
            "s",
            (average("edged_update_stage_duration_seconds", "stage"), "{{stage}}"),
        ),
        _gauge_bars(
            "From drop to live",
            "Mean time from the detection of a file to its going live, in the selected time range.",
            "s",
            (average("edged_update_duration_seconds", "instance, model"), "{{instance}} {{model}}"),
        ),
        _lines(
            "Queue",
            "Updates that are queued or in progress, and files that are parked until an operator acts.",
            "none",
            (f"edged_queue_length{{{MODEL}}}", "{{instance}} {{model}} queued"),
            (f"edged_drops_held{{{MODEL}}}", "{{instance}} {{model}} parked"),
        ),
        _gauge_bars(
            "Swap",
            "Mean time from the switch of traffic to the exit of the previous process, in the selected time range.",
            "s",
            (average("edged_swap_duration_seconds", "instance, model"), "{{instance}} {{model}}"),
        ),
    ]


def _requests() -> list[Builder[Panel]]:
    asked = f"edged_inference_requests_total{{{MODEL}}}"
    failed = f'edged_inference_requests_total{{{MODEL}, code=~"5.."}}'

    def rate(counter: str, by: str) -> str:
        return f"sum by ({by}) (rate({counter}[$__rate_interval]))"

    def quantile(share: float) -> Query:
        buckets = (
            f"sum by (le, model) (rate(edged_inference_request_duration_seconds_bucket{{{MODEL}}}[$__rate_interval]))"
        )
        return f"histogram_quantile({share}, {buckets})", f"{{{{model}}}} p{share * 100:.0f}"

    return [
        _lines(
            "Requests", "Requests per second by status.", "reqps", (rate(asked, "model, code"), "{{model}} {{code}}")
        ),
        _lines(
            "Errors",
            "Share of responses with a 5xx status.",
            "percentunit",
            (f"{rate(failed, 'model')} / ({rate(asked, 'model')} > 0)", "{{model}}"),
        ),
        _lines("Latency", "From the arrival of a request to its response.", "s", quantile(0.5), quantile(0.99)),
        _lines(
            "In flight",
            "Requests in progress or queued.",
            "none",
            (f"edged_inference_requests_in_flight{{{MODEL}}}", "{{instance}} {{model}}"),
        ),
        _lines(
            "Ready",
            "1 while a generation serves the model.",
            "none",
            (f"edged_model_ready{{{MODEL}}}", "{{instance}} {{model}}"),
            (f"edged_model_probation{{{MODEL}}}", "{{instance}} {{model}} on probation"),
        ),
        _bars(
            "Restarts",
            "Serving processes that were restarted after an unexpected exit.",
            "none",
            (f"increase(edged_generation_restarts_total{{{MODEL}}}[$__rate_interval])", "{{instance}} {{model}}"),
        ),
    ]


def _models() -> list[Builder[Panel]]:
    return [
        _lines(
            "Quality",
            "Agreement with full precision; with labeled images also accuracy or mAP.",
            "percentunit",
            (f"edged_model_agreement_ratio{{{MODEL}}}", "{{instance}} {{model}} agreement"),
            (f"edged_model_accuracy_ratio{{{MODEL}}}", "{{instance}} {{model}} top-1 {{precision}}"),
            (f"edged_model_map_ratio{{{MODEL}}}", "{{instance}} {{model}} mAP@{{iou}} {{precision}}"),
        ),
        _gauge_bars(
            "Layers with the highest loss",
            "Squared error of the layer's output as a share of its energy.",
            "percentunit",
            (f"topk(20, edged_layer_relative_loss{{{MODEL}}})", "{{instance}} {{model}} {{layer}}"),
        ),
        _gauge_bars(
            "Size",
            "Size of the checkpoint and of its artifact.",
            "bytes",
            (f"edged_checkpoint_bytes{{{MODEL}}}", "{{instance}} {{model}} checkpoint"),
            (f"edged_artifact_bytes{{{MODEL}}}", "{{instance}} {{model}} artifact"),
        ),
        _lines(
            "Drift",
            "Population stability index of live images relative to calibration images; above 0.25 is a large change.",
            "none",
            (f"edged_calibration_drift{{{MODEL}}}", "{{instance}} {{model}}"),
        ),
        _bars(
            "Captured images",
            "Live requests that were sampled for capture, by result.",
            "none",
            (
                f"sum by (model, result) (increase(edged_captured_images_total{{{MODEL}}}[$__rate_interval]))",
                "{{model}} {{result}}",
            ),
        ),
    ]


def _memory() -> list[Builder[Panel]]:
    return [
        _lines(
            "edged",
            "Resident memory of the processes of edged.",
            "bytes",
            (f"process_resident_memory_bytes{{{DEVICE}}}", "{{instance}} supervisor"),
            (f"edged_generation_memory_bytes{{{MODEL}}}", "{{instance}} {{model}} serving"),
            (f"edged_worker_memory_bytes{{{MODEL}}}", "{{instance}} {{model}} worker"),
        ),
        _lines(
            "Worker",
            "Peak memory of the last worker, and its limit if there is one.",
            "bytes",
            (f"edged_worker_peak_memory_bytes{{{MODEL}}}", "{{instance}} {{model}} peak"),
            (f"edged_worker_peak_device_memory_bytes{{{MODEL}}}", "{{instance}} {{model}} peak on its compute device"),
            (f"edged_worker_memory_limit_bytes{{{DEVICE}}} < Inf", "{{instance}} limit"),
        ),
        _lines(
            "Device",
            "Memory of the device. A Jetson's GPU uses the same memory.",
            "bytes",
            (f"edged_device_memory_total_bytes{{{DEVICE}}}", "{{instance}} total"),
            (f"edged_device_memory_available_bytes{{{DEVICE}}}", "{{instance}} available"),
            (f"edged_device_gpu_memory_used_bytes{{{DEVICE}}}", "{{instance}} used by the GPU"),
        ),
    ]


def _device() -> list[Builder[Panel]]:
    return [
        _lines(
            "Temperature",
            "Temperature of each thermal zone, and the limit at which the kernel throttles the device.",
            "celsius",
            (f"edged_device_temperature_celsius{{{DEVICE}}}", "{{instance}} {{zone}}"),
            (f"edged_device_temperature_limit_celsius{{{DEVICE}}}", "{{instance}} {{zone}} limit"),
        ),
        _lines(
            "Frequency",
            "Frequency as a share of its maximum.",
            "percentunit",
            (
                f"edged_device_cpu_frequency_hertz{{{DEVICE}}} / edged_device_cpu_frequency_max_hertz{{{DEVICE}}}",
                "{{instance}} CPU {{cpu}}",
            ),
            (
                f"edged_device_gpu_frequency_hertz{{{DEVICE}}} / edged_device_gpu_frequency_max_hertz{{{DEVICE}}}",
                "{{instance}} GPU {{gpu}}",
            ),
        ),
        _lines(
            "Load",
            "Utilization of the GPU, and CPU cores that the supervisor uses.",
            "percentunit",
            (f"edged_device_gpu_load_ratio{{{DEVICE}}}", "{{instance}} GPU"),
            (f"rate(process_cpu_seconds_total{{{DEVICE}}}[$__rate_interval])", "{{instance}} supervisor"),
        ),
        _lines(
            "Disk",
            "Filesystem of the state folder.",
            "bytes",
            (f"edged_state_disk_free_bytes{{{DEVICE}}}", "{{instance}} free"),
            (f"edged_state_disk_total_bytes{{{DEVICE}}}", "{{instance}} total"),
        ),
        _lines(
            "Drop folders and config",
            "1 while every drop folder is watched, or while the config is valid.",
            "none",
            (f"edged_watch_up{{{DEVICE}}}", "{{instance}} watched"),
            (f"edged_config_reload_success{{{DEVICE}}}", "{{instance}} config valid"),
        ),
    ]


def _variables() -> list[Builder[Any]]:
    def query(name: str, promql: str) -> dashboard.QueryVariable:
        every = VariableOption(text=["All"], value=["$__all"])
        return (
            dashboard.QueryVariable(name)
            .label(name.capitalize())
            .datasource(SOURCE)
            .query(promql)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(every)
        )

    return [
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        query("instance", 'label_values(up{job="edged"}, instance)'),
        query("model", 'label_values(edged_model_ready{job="edged", instance=~"$instance"}, model)'),
    ]


def _annotations() -> list[dashboard.AnnotationQuery]:
    def marks(name: str, color: str, promql: str) -> dashboard.AnnotationQuery:
        return dashboard.AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(color).expr(promql)

    swaps = f"increase(edged_swap_duration_seconds_count{{{MODEL}}}[$__rate_interval]) > 0"
    back = f'increase(edged_updates_total{{{MODEL}, result="rolled_back"}}[$__rate_interval]) > 0'
    firing = 'ALERTS{alertname=~"Edged.*", alertstate="firing", instance=~"$instance"}'
    return [
        marks("Swaps", "blue", f"sum by (instance, model) ({swaps})"),
        marks("Rollbacks", "orange", f"sum by (instance, model, reason) ({back})"),
        marks("Alerts", "red", firing),
    ]


def _targets(queries: tuple[Query, ...], instant: bool = False) -> list[Builder[Any]]:
    targets: list[Builder[Any]] = []
    for letter, (promql, legend) in zip("ABCDEF", queries, strict=False):
        target = prometheus.Dataquery().ref_id(letter).expr(promql).legend_format(legend)
        targets.append(target.instant() if instant else target.range())
    return targets


def _lines(title: str, description: str, unit: str, *queries: Query) -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    return (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .targets(_targets(queries))
        .legend(legend.show_legend(True).calcs([]))
        .span(8)
        .height(8)
    )


def _bars(title: str, description: str, unit: str, *queries: Query) -> timeseries.Panel:
    stacked = common.StackingConfig().mode(StackingMode.NORMAL)
    return _lines(title, description, unit, *queries).draw_style(GraphDrawStyle.BARS).stacking(stacked)


def _gauge_bars(title: str, description: str, unit: str, *queries: Query) -> bargauge.Panel:
    return (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .display_mode(BarGaugeDisplayMode.BASIC)
        .orientation(VizOrientation.HORIZONTAL)
        .targets(_targets(queries, instant=True))
        .span(8)
        .height(8)
    )


def _number(title: str, promql: str, unit: str) -> stat.Panel:
    return (
        stat.Panel()
        .title(title)
        .datasource(SOURCE)
        .unit(unit)
        .targets(_targets(((promql, ""),), instant=True))
        .span(6)
        .height(4)
    )


def _table(title: str, description: str, promql: str, width: int) -> table.Panel:
    target = prometheus.Dataquery().ref_id("A").expr(promql).instant().format(PromQueryFormat.TABLE)
    hidden = {"excludeByName": dict.fromkeys(("Time", "__name__", "job"), True)}
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .with_target(target)
        .with_transformation(DataTransformerConfig(id_val="organize", options=hidden))
        .span(width)
        .height(8)
    )


def text() -> str:
    """Return the dashboard as JSON, as Grafana imports and provisions it."""
    built = build().build()
    for number, panel in enumerate(built.panels or [], start=1):
        panel.id_val = number
    return JSONEncoder(sort_keys=True, indent=2).encode(built) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
