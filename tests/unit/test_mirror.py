"""The tests mirror the modules: a module's test file stands at the module's own path under unit/ or integration/."""

from __future__ import annotations

from tests.support.repository import ROOT

# Module -> the test files, relative to tests/, that test it along with the module that uses it.
TESTED_BY = {
    "edged/calibration/formats": "unit/edged/calibration/test_odd_images.py",
    "edged/calibration/gram": "unit/edged/calibration/test_moments.py",
    "edged/calibration/conv_moments": "unit/edged/calibration/test_moments.py",
    "edged/models/allowlist": "unit/edged/models/yolov5/test_pickled.py",
    "edged/artifacts/digest": "unit/edged/artifacts/test_writer.py",
    "edged/comparators/peers/aimet": "unit/edged/comparators/peers/test_peer.py",
    "edged/comparators/peers/brevitas": "unit/edged/comparators/peers/test_peer.py",
    "edged/comparators/peers/onnx_tools": "unit/edged/comparators/peers/test_peer.py",
    "edged/execution/onnx_model": "unit/edged/execution/test_executors.py",
    "edged/models/detections": "unit/edged/evaluation/test_detection.py",
    "edged/models/head_description": "unit/edged/models/test_head.py",
    "edged/models/names": "unit/edged/models/test_checkpoint.py",
    "edged/models/yolov5/arguments": "unit/edged/models/yolov5/test_plan.py",
    "edged/quant/objective": "unit/edged/quant/test_properties.py",
    "edged/quant/rtn": "unit/edged/quant/test_properties.py",
    "service/calibration/add": "unit/service/calibration/test_image_set.py",
    "service/calibration/checks": "unit/service/calibration/test_image_set.py",
    "service/cli/commands": "unit/service/cli/test_main.py",
    "service/cli/output": "unit/service/cli/test_main.py",
    "service/cli/parser": "unit/service/cli/test_main.py",
    "service/cli/progress_bar": "integration/service/cli/test_offline.py",
    "service/cli/tables": "integration/service/cli/test_offline.py",
    "service/comparison/measure": "integration/service/comparison/test_main.py",
    "service/config/current": "unit/service/updates/test_runner.py",
    "service/config/labels": "unit/service/config/test_load.py",
    "service/config/fields": "unit/service/config/test_load.py",
    "service/config/sections": "unit/service/config/test_load.py",
    "service/config/yaml_source": "unit/service/config/test_load.py",
    "service/daemon/admin": "end_to_end/test_holds.py",
    "service/daemon/collector": "end_to_end/test_holds.py",
    "service/daemon/gauges": "end_to_end/test_dashboard.py",
    "service/daemon/model_registry": "end_to_end/test_trouble.py",
    "service/daemon/model_repository": "end_to_end/test_protocol.py",
    "service/daemon/queries": "end_to_end/test_update.py",
    "service/daemon/supervisor": "end_to_end/test_startup.py",
    "service/daemon/state_watch": "end_to_end/test_state_folder.py",
    "service/daemon/statuses": "end_to_end/test_protocol.py",
    "service/daemon/tokens": "unit/service/http/test_auth.py",
    "service/daemon/update_actions": "end_to_end/test_superseding.py",
    "service/doctor/cuda_probe": "unit/service/doctor/test_accelerator.py",
    "service/doctor/engine_probe": "unit/service/doctor/test_engines.py",
    "service/doctor/grpc_probe": "unit/service/doctor/test_packages.py",
    "service/doctor/sandbox_probe": "unit/service/doctor/test_sandbox.py",
    "service/doctor/torch_probe": "unit/service/doctor/test_packages.py",
    "service/inference/repair": "integration/service/serving/test_generation.py",
    "service/grpc/descriptor": "unit/service/grpc/test_messages.py",
    "service/grpc/errors": "end_to_end/test_grpc.py",
    "service/grpc/generate": "unit/service/grpc/test_messages.py",
    "service/grpc/health": "end_to_end/test_grpc.py",
    "service/grpc/heap": "end_to_end/test_grpc.py",
    "service/grpc/server": "end_to_end/test_grpc.py",
    "service/grpc/service": "end_to_end/test_grpc.py",
    "service/http/acceptor": "unit/service/http/test_server.py",
    "service/http/connections": "unit/service/http/test_protocol.py",
    "service/http/inference_route": "end_to_end/test_protocol.py",
    "service/http/log_routes": "end_to_end/test_commands.py",
    "service/http/model_panel": "unit/service/http/test_status_page.py",
    "service/http/page_routes": "end_to_end/test_status_page.py",
    "service/http/report_routes": "end_to_end/test_report.py",
    "service/http/repository_routes": "end_to_end/test_protocol.py",
    "service/http/routes": "end_to_end/test_protocol.py",
    "service/inference/main": "integration/service/serving/test_generation.py",
    "service/ipc/messages": "unit/service/inference/test_binary.py",
    "service/journal/database": "unit/service/journal/test_store.py",
    "service/journal/schema": "unit/service/journal/test_store.py",
    "service/reporting/files": "unit/service/reporting/test_data.py",
    "service/reporting/pictures": "unit/service/reporting/test_page.py",
    "service/rollout/live_metrics": "end_to_end/test_dashboard.py",
    "service/serving/forked_process": "integration/service/serving/test_fork_client.py",
    "service/storage/generations": "unit/service/rollout/test_swap.py",
    "service/storage/state_folder": "unit/service/updates/test_runner.py",
    "service/system/pillow_warnings": "integration/service/cli/test_main.py",
    "service/system/disk_thread": "unit/service/updates/test_runner.py",
    "service/trust/main": "integration/service/trust/test_verifier.py",
    "service/updates/admission": "end_to_end/test_manners.py",
    "service/updates/attempt": "end_to_end/test_update.py",
    "service/updates/workers": "unit/service/updates/test_runner.py",
    "service/worker/denied_calls": "unit/service/worker/test_sandbox.py",
    "service/worker/main": "integration/service/worker/test_process.py",
    "service/worker/rejected": "unit/service/worker/test_pipeline.py",
}

# Module -> why no test is about it.
UNTESTED = {
    "edged/version": "one text; the test of `edged --version` reads it",
    "edged/errors": "classes with a code each; the tests of those that raise them see both",
    "edged/progress": "a protocol and its empty implementation",
    "service/daemon/environment": "types that carry values",
    "service/ipc/options": "two fields",
    "service/cli/__main__": "two calls; every test of a command that computes runs it",
    "service/outcomes": "types that carry values",
    "service/rollout/records": "types that carry values",
    "service/serving/limits": "types that carry values",
    "service/updates/steps": "types that carry values",
    "service/storage/paths": "names of files; every test of the state folder uses them",
}

# Test file -> what it is about, where that is more than one module.
ACROSS_MODULES = {
    "edged/calibration/odd_images": "formats, images and dataset on images as users have them",
    "edged/models/genuine_checkpoints": "loading checkpoints that others trained",
    "edged/models/yolov5/release_5": "the networks of v5.0, from their files to quantized",
    "edged/models/hostile": "whole files that are built to harm",
    "edged/quant/golden": "codes of all quantization methods, pinned",
    "edged/quant/properties": "what holds for every quantization method",
    "edged/robustness": "compress on degenerate networks and images",
}


def modules() -> set[str]:
    """Return the paths of all modules without their suffix; a package with code of its own is package/package."""
    found = set()
    for path in [path for package in ("edged", "service") for path in (ROOT / package).rglob("*.py")]:
        name = path.relative_to(ROOT).with_suffix("")
        if path.name != "__init__.py":
            found.add(name.as_posix())
        elif "def " in path.read_text():
            found.add((name.parent / name.parent.name).as_posix())
    return found


def mirrored() -> set[str]:
    """Return the paths of the modules that the test files stand for."""
    folders = [ROOT / "tests" / kind for kind in ("unit", "integration")]
    paths = [path.relative_to(folder) for folder in folders for path in folder.rglob("test_*.py")]
    names = [(path.parent / path.stem.removeprefix("test_")).as_posix() for path in paths]
    return {name for name in names if name.startswith(("edged/", "service/"))}


def test_each_module_has_its_test_file_or_a_reason() -> None:
    assert modules() - mirrored() == set(TESTED_BY) | set(UNTESTED)
    assert all((ROOT / "tests" / path).is_file() for path in TESTED_BY.values())


def test_each_test_file_stands_for_a_module_or_says_for_what() -> None:
    assert mirrored() - modules() == set(ACROSS_MODULES)


def test_test_files_are_no_helpers() -> None:
    """What several test files need stands in tests/support."""
    places = ("tests.unit", "tests.integration", "tests.end_to_end", "tests.conftest")
    for path in (ROOT / "tests").rglob("*.py"):
        imports = [line for line in path.read_text().splitlines() if line.lstrip().startswith(("from ", "import "))]
        assert not [line for line in imports if line.split()[1].startswith(places)], path
