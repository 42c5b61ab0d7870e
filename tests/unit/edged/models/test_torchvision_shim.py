import subprocess
import sys
import textwrap

import pytest

from edged.models.torchvision_shim import compiled_operators_load, import_torchvision


def run(code: str, *flags: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", *flags, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_resnets_can_be_had_in_a_fresh_process_without_warnings():
    out = run("""
        from edged.models.torchvision_shim import import_torchvision
        torchvision = import_torchvision()
        print(torchvision.models.resnet18(num_classes=3).fc.out_features, import_torchvision() is torchvision)
    """)
    assert out == "3 True"


def test_torchvision_can_be_imported_twice():
    module = import_torchvision()
    assert module is sys.modules["torchvision"]
    assert callable(module.models.resnet50)


@pytest.mark.skipif(compiled_operators_load(), reason="torchvision's compiled operators load here: nothing to mend")
def test_without_the_shim_the_import_fails_here():
    out = run("""
        try:
            import torchvision
        except RuntimeError as error:
            print(error)
    """)
    assert "torchvision::nms does not exist" in out
