"""Build descriptor.py from inference.proto: `python service/grpc/generate.py`. Run it after a change of the latter.

It needs grpcio-tools, of the extra `test`. The daemon has no generated code: protobuf makes classes of a descriptor,
whatever the version of the compiler was.
"""

from __future__ import annotations

import base64
import tempfile
import textwrap
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

HERE = Path(__file__).parent
SOURCE = HERE / "inference.proto"
TARGET = HERE / "descriptor.py"

_MODULE = '''\
"""The interface of inference.proto in protobuf's own format, as base64. Built by service/grpc/generate.py."""

DESCRIPTOR = """
{}
"""
'''


def descriptor_module() -> str:
    """Return what descriptor.py should contain.

    Raises:
        SystemExit: inference.proto has a mistake, which the compiler prints.
    """
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder, "descriptor")
        code = protoc.main(["protoc", f"-I{HERE}", f"--descriptor_set_out={compiled}", SOURCE.name])
        if code:
            raise SystemExit(code)
        (file,) = FileDescriptorSet.FromString(compiled.read_bytes()).file
    text = base64.b64encode(file.SerializeToString(deterministic=True)).decode()
    return _MODULE.format("\n".join(textwrap.wrap(text, 116)))


if __name__ == "__main__":
    TARGET.write_text(descriptor_module())
