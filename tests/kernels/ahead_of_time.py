"""Compile Triton kernels for GPUs that are not here, and say what the machine code needs.

`compile_kernels` works in a process of its own, without TRITON_INTERPRET (under which `triton.jit`
gives no compilable kernel), in a temporary cache folder, with the ptxas that Triton ships: no
driver and no GPU is needed.

    built = compile_kernel(
        Kernel("omr_io.kernels.pack", "pack_kernel", signature={"tokens_V": "*i32", "n": "i32"},
               constants={"BLOCK": 1024}, aligned=("tokens_V",), capability=90)
    )
    assert built.registers <= 32 and built.spill_bytes == 0
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CAPABILITIES = (80, 90)
"""A100 and H100."""


@dataclass(frozen=True)
class Kernel:
    """What to compile.

    Attributes:
        module, name: where the `triton.jit` function is, "omr_io.kernels.pack" and "pack_kernel".
        signature: of every argument that is no constant, Triton's type: "*i32",
            "*bf16", "*fp32", "i32".
        constants: of every other argument (tl.constexpr, or a pointer that is None), its value:
            numbers, text, True, False or None.
        aligned: arguments that are multiples of 16: pointers of torch's own allocations are, and a
            size that the caller keeps so. Triton specialises a launch in the same way.
        capability: 80 or 90.
        options: of the launch: num_warps, num_stages, enable_fp_fusion, ...
    """

    module: str
    name: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    aligned: Sequence[str] = ()
    capability: int = 90
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Compiled:
    """What came of it.

    Attributes:
        ptx, sass: the code, for the virtual and the real machine.
        registers: 32-bit registers of a thread.
        spill_bytes: stored to and loaded from local memory by a thread for want of registers.
        stack_bytes: a thread's stack frame.
        shared_bytes: static and dynamic shared memory of a program.
    """

    ptx: str
    sass: str
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int

    def count(self, instruction: str) -> int:
        """How often PTX has an instruction that begins so: "st.global.v4.b32"."""
        return len(re.findall(rf"^.*\s{re.escape(instruction)}", self.ptx, re.MULTILINE))

    def count_sass(self, instruction: str) -> int:
        """How often the machine code has an instruction that begins so: "STG.E.128", "FFMA"."""
        return len(re.findall(rf"^.*\s{re.escape(instruction)}", self.sass, re.MULTILINE))

    @property
    def wide_stores(self) -> int:
        """Stores of 16 bytes a thread to global memory in PTX."""
        return self.count("st.global.v4.b32") + self.count("st.global.v2.b64")


def compile_kernel(kernel: Kernel) -> Compiled:
    """`compile_kernels` of one."""
    return compile_kernels([kernel])[0]


def compile_kernels(kernels: Sequence[Kernel]) -> list[Compiled]:
    """Compile all in one other process (its start takes some 2 s, a small kernel 0.3 s).

    Raises:
        AssertionError: one does not compile; the message holds the compiler's own.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
        path = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        environment |= {"TRITON_CACHE_DIR": folder, "PYTHONPATH": os.pathsep.join(path)}
        done = subprocess.run(
            # -P: this folder does not go on the path of imports.
            [sys.executable, "-P", __file__, folder],
            input=json.dumps([dataclasses.asdict(kernel) for kernel in kernels]),
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        results = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
    return [Compiled(**result) for result in results]


def _compile(kernel: Kernel, folder: Path) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(kernel.module), kernel.name)
    names = list(function.arg_names)
    given = [*kernel.signature, *kernel.constants]
    assert sorted(given) == sorted(names), f"{kernel.name} takes {names}, not {given}"
    assert set(kernel.aligned) <= set(kernel.signature), f"aligned: {kernel.aligned}"
    signature = {name: kernel.signature.get(name, "constexpr") for name in names}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in kernel.aligned}
    source = ASTSource(function, signature, constexprs=dict(kernel.constants), attrs=aligned)
    target = GPUTarget("cuda", kernel.capability, 32)
    built = triton.compile(source, target=target, options=dict(kernel.options))
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(built.asm["cubin"])
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    usage = _run(tools / "cuobjdump", "--dump-resource-usage", cubin)
    sass = _run(tools / "nvdisasm", "-c", cubin)
    return Compiled(
        ptx=built.asm["ptx"],
        sass=sass,
        registers=_number(r"\bREG:(\d+)", usage),
        spill_bytes=_spill_bytes(built, kernel, folder, tools),
        stack_bytes=_number(r"\bSTACK:(\d+)", usage),
        # What Triton asks for at launch holds all of a program's; cuobjdump's part is static.
        shared_bytes=max(int(built.metadata.shared), _number(r"\bSHARED:(\d+)", usage)),
    )


def _spill_bytes(built: Any, kernel: Kernel, folder: Path, tools: Path) -> int:
    """From ptxas' own report, with the options that Triton gives it."""
    source = folder / "kernel.ptx"
    source.write_text(built.asm["ptx"], encoding="utf-8")
    architecture = f"sm_{kernel.capability}{'a' if kernel.capability >= 90 else ''}"
    options = ["-v", "--regAllocOptLevel=2", f"--gpu-name={architecture}"]
    if not kernel.options.get("enable_fp_fusion", True):
        options.append("--fmad=false")
    report = _run(tools / "ptxas", *options, source, "-o", folder / "again.cubin")
    return _number(r"(\d+) bytes spill stores", report) + _number(
        r"(\d+) bytes spill loads", report
    )


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def _number(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    assert found, f"no {pattern} in {text}"
    return max(int(number) for number in found)


def main() -> None:
    """The other process: descriptions of kernels on standard input, results into the folder."""
    folder = Path(sys.argv[1])
    kernels = [Kernel(**described) for described in json.load(sys.stdin)]
    results = [dataclasses.asdict(_compile(kernel, folder)) for kernel in kernels]
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
