"""Build descriptor.py from the .proto files here: `python service/grpc/generate.py`. Run it after a change of them.

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
SOURCES = ("inference.proto", "health.proto")
TARGET = HERE / "descriptor.py"

_MODULE = '''\
"""The .proto files of this folder in protobuf's own format, as base64. Built by service/grpc/generate.py."""

DESCRIPTORS = ({})
'''


def descriptor_module() -> str:
    """Return what descriptor.py should contain.

    Raises:
        SystemExit: A .proto file has a mistake, which the compiler prints.
    """
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder, "descriptor")
        code = protoc.main(["protoc", f"-I{HERE}", f"--descriptor_set_out={compiled}", *SOURCES])
        if code:
            raise SystemExit(code)
        files = FileDescriptorSet.FromString(compiled.read_bytes()).file
    texts = [base64.b64encode(file.SerializeToString(deterministic=True)).decode() for file in files]
    return _MODULE.format(
        "".join('\n    """\n{}\n""",'.format("\n".join(textwrap.wrap(text, 116))) for text in texts) + "\n"
    )


if __name__ == "__main__":
    TARGET.write_text(descriptor_module())
