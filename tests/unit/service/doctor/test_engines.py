import pytest

from service.config.load import load_config
from service.doctor import engines
from service.doctor.engines import check_engines, check_processor
from service.doctor.packages import probe
from tests.support.machines import levels, machine, only

ONNX_RUNTIME = {"version": "1.20", "computes_on": ["CPUExecutionProvider"]}


@pytest.fixture
def here(tmp_path):
    return machine(tmp_path)


@pytest.fixture
def config(tmp_path):
    def write(runtime):
        (tmp_path / "images").mkdir(exist_ok=True)
        path = tmp_path / "edged.yaml"
        rest = "quantization: {scheme: symmetric}, calibration: {dir: images}"
        path.write_text(f"models: [{{name: m, runtime: {runtime}, {rest}}}]\n")
        return load_config(path)

    return write


def installed(monkeypatch, **found):
    """Have these engines, with what their probes say."""
    there = {"onnxruntime-gpu" if name == "gpu" else name for name in found}
    monkeypatch.setattr(engines, "version_of", lambda package: "1" if package in there else None)
    monkeypatch.setattr(engines, "probe", lambda module, engine: found.get(engine) or found["gpu"])


def test_engines_are_tried(here):
    found = only(check_engines(here, None))
    assert (found.name, found.level) == ("runtimes", "ok")
    assert "CPUExecutionProvider" in found.detail
    assert found.detail.split("; ")[-1] in ("torch", "openvino is not installed")


def test_what_is_missing_is_named_with_its_remedy(here, monkeypatch):
    installed(monkeypatch, onnxruntime=ONNX_RUNTIME, torch={})
    found = only(check_engines(here, None))
    detail = "onnxruntime 1.20 with CPUExecutionProvider; torch; openvino is not installed"
    assert (found.level, found.detail, found.fix) == ("ok", detail, "openvino: `pip install openvino`")
    installed(monkeypatch, torch={})
    found = only(check_engines(here, None))
    assert found.level == "warn"
    assert found.detail == (
        "torch; onnxruntime is not installed; openvino is not installed, so requests take more memory and time"
    )
    assert found.fix.startswith("onnxruntime: `pip install onnxruntime`, openvino: ")


def test_on_a_jetson_the_wheels_are_those_of_its_jetpack(tmp_path, monkeypatch):
    jetson = machine(tmp_path, {"/etc/nv_tegra_release": "# R36 (release), REVISION: 4.0"})
    installed(monkeypatch)
    found = only(check_engines(jetson, None))
    assert "onnxruntime-gpu wheel of your JetPack" in found.fix
    assert "torch wheel of your JetPack" in found.fix
    installed(monkeypatch, gpu={"version": "1.23", "computes_on": ["CUDAExecutionProvider", "CPUExecutionProvider"]})
    assert only(check_engines(jetson, None)).detail.startswith("onnxruntime 1.23 with CUDAExecutionProvider, CPU")


def test_an_engine_that_cannot_be_imported_is_a_warning(here, monkeypatch):
    installed(monkeypatch, onnxruntime=ONNX_RUNTIME, openvino="ImportError: no", torch={})
    found = levels(check_engines(here, None))
    assert found["openvino"] == ("warn", "it cannot be imported: ImportError: no")
    assert found["runtimes"] == ("ok", "onnxruntime 1.20 with CPUExecutionProvider; torch")
    installed(monkeypatch, onnxruntime="ImportError: no", torch={})
    assert {name: level for name, (level, _) in levels(check_engines(here, None)).items()} == {
        "runtimes": "warn",
        "onnxruntime": "warn",
    }


def test_tensorrt_is_missed_only_where_there_is_a_gpu(here, tmp_path, monkeypatch):
    installed(monkeypatch, onnxruntime=ONNX_RUNTIME, openvino=ONNX_RUNTIME, torch={})
    assert "tensorrt" not in only(check_engines(here, None)).detail
    found = only(check_engines(machine(tmp_path, {"/dev/nvidia0": ""}), None))
    assert found.detail.endswith("; tensorrt is not installed")
    assert found.fix == "tensorrt: `pip install tensorrt`"
    jetson = machine(tmp_path, {"/dev/nvmap": "", "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.0"})
    assert only(check_engines(jetson, None)).fix == "tensorrt: `sudo apt install python3-libnvinfer`"


def test_tensorrt_names_its_gpu(here, tmp_path, monkeypatch, fake_tensorrt):
    found = probe("service.doctor.engine_probe", "tensorrt")
    assert found == {"version": "10.3.0", "computes_on": ["Orin (8.7)"]}
    fake_tensorrt.use(gpu="")
    assert "cudaErrorNoDevice" in probe("service.doctor.engine_probe", "tensorrt")


@pytest.mark.parametrize("broken", [False, True])
def test_an_engine_of_the_config_that_cannot_be_used_is_a_failure(here, config, monkeypatch, broken):
    installed(monkeypatch, onnxruntime=ONNX_RUNTIME, torch={}, **({"openvino": "ImportError: no"} if broken else {}))
    found = [check for check in check_engines(here, config("openvino")) if check.name == "runtime of m"]
    (check,) = found
    assert (check.level, check.exit_code) == ("fail", 69)
    assert check.detail.endswith("no checkpoint of the model can be quantized, and no generation of it can start")
    assert check.fix == "`pip install openvino`, or set models[].runtime.name: auto"
    assert levels(check_engines(here, config("tensorrt")))["runtime of m"][1].endswith("can be quantized")
    for runtime in ("auto", "onnxruntime", "torch"):
        assert "runtime of m" not in levels(check_engines(here, config(runtime)))


def test_a_provider_of_the_config_that_is_missing_is_a_warning(here, config, monkeypatch):
    installed(monkeypatch, onnxruntime=ONNX_RUNTIME, torch={})
    wanted = config("{name: onnxruntime, providers: [tensorrt, cuda, cpu]}")
    level, detail = levels(check_engines(here, wanted))["runtime of m"]
    assert (level, detail.partition(":")[0]) == ("warn", "this onnxruntime has no provider tensorrt and cuda")
    assert "runtime of m" not in levels(check_engines(here, config("{name: onnxruntime, providers: [cpu]}")))
    gpu = {"version": "1.23", "computes_on": ["CUDAExecutionProvider", "CPUExecutionProvider"]}
    installed(monkeypatch, gpu=gpu, torch={})
    assert "no provider tensorrt:" in levels(check_engines(here, wanted))["runtime of m"][1]


@pytest.mark.parametrize(
    ("cpuinfo", "words"),
    [
        ("flags\t\t: fpu avx2 avx512_vnni\n", "the processor has VNNI (avx512_vnni)"),
        ("flags\t\t: fpu avx2\nflags\t\t: fpu avx2\n", "no VNNI: integers take about twice the time"),
        ("Features\t: fp asimd asimddp\n", "(asimddp)"),
        ("Features\t: fp asimd\n", "no instructions for products of 8-bit integers"),
        ("", "no instructions for products of 8-bit integers"),
    ],
)
def test_the_processor_is_said_to_have_instructions_for_integers_or_not(tmp_path, cpuinfo, words):
    found = only(check_processor(machine(tmp_path, {"/proc/cpuinfo": cpuinfo}), None))
    assert found.level == "ok"
    assert words in found.detail
    assert ("bits: 7" in found.fix) == ("saturate" in found.detail)
