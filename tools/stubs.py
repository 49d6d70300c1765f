"""Makes the stubs under client/maas from protos/, and the descriptor image that buf checks.

    python tools/stubs.py            writes the stubs
    python tools/stubs.py --check    says which stubs are not what the protos make; exit status 1
    python tools/stubs.py --image F  writes a descriptor set of all protos, with comments, to F

Imported protos come from installed packages: google.api and google.rpc from googleapis-common-protos, buf.validate
from the descriptor that protovalidate carries. protoc finds the latter in a descriptor set.
"""

import argparse
import filecmp
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import grpc_tools
from google.protobuf.descriptor_pb2 import FileDescriptorSet

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
STUBS = ROOT / "client"


def main() -> int:
    """Run one of the three modes; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--image", type=Path)
    arguments = parser.parse_args()
    if arguments.image:
        protoc("--include_imports", "--include_source_info", f"--descriptor_set_out={arguments.image}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        protoc(
            f"--python_out={made}",
            f"--grpc_python_out={made}",
            f"--mypy_out=quiet:{made}",
            f"--mypy_grpc_out=quiet:{made}",
        )
        return compare(made) if arguments.check else replace(made)


def protoc(*options: str) -> None:
    """Run protoc on all of protos/ with these outputs."""
    with tempfile.TemporaryDirectory() as folder:
        imported = Path(folder) / "imported.binpb"
        imported.write_bytes(validate_descriptors().SerializeToString())
        site = sysconfig.get_paths()["purelib"]
        scripts = Path(sys.executable).parent
        subprocess.run(
            [
                sys.executable,
                "-m",
                "grpc_tools.protoc",
                f"--proto_path={PROTOS}",
                f"--proto_path={site}",
                f"--proto_path={Path(grpc_tools.__file__).parent / '_proto'}",
                f"--descriptor_set_in={imported}",
                f"--plugin={scripts / 'protoc-gen-mypy'}",
                f"--plugin={scripts / 'protoc-gen-mypy_grpc'}",
                *options,
                *sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto")),
            ],
            check=True,
            timeout=120,
        )


def validate_descriptors() -> FileDescriptorSet:
    """Return buf/validate/validate.proto and what it imports."""
    from buf.validate import validate_pb2

    found: dict[str, bytes] = {}

    def collect(file) -> None:  # type: ignore[no-untyped-def]
        for dependency in file.dependencies:
            collect(dependency)
        found[file.name] = file.serialized_pb

    collect(validate_pb2.DESCRIPTOR)
    descriptors = FileDescriptorSet()
    for serialized in found.values():
        descriptors.file.add().ParseFromString(serialized)
    return descriptors


def stub_files(folder: Path) -> set[Path]:
    """Return the generated files under a folder, relative to it."""
    return {path.relative_to(folder) for path in folder.rglob("*_pb2*") if path.suffix in {".py", ".pyi"}} - {
        Path("buf/validate/validate_pb2.py")
    }


def replace(made: Path) -> int:
    """Put the made stubs in place of the old ones."""
    for path in stub_files(STUBS) - stub_files(made):
        (STUBS / path).unlink()
    for path in stub_files(made):
        (STUBS / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made / path, STUBS / path)
        for package in (STUBS / path).relative_to(STUBS).parents:
            if len(package.parts) > 1:
                (STUBS / package / "__init__.py").touch()
    print(f"{len(stub_files(made))} stub files written")
    return 0


def compare(made: Path) -> int:
    """Say which stubs differ from what the protos make."""
    wrong = sorted(
        str(path)
        for path in stub_files(STUBS) | stub_files(made)
        if not (STUBS / path).exists()
        or not (made / path).exists()
        or not filecmp.cmp(STUBS / path, made / path, shallow=False)
    )
    for path in wrong:
        print(f"client/{path} is not what protos/ makes: run `make stubs`", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
