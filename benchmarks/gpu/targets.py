"""Compiles Triton kernels for GPUs that are not here: a driver that pretends to be one, and what came out.

Under :class:`StubDriver` the package's own wrappers run on tensors of the CPU: grids, specialisation and
every configuration of the autotuner are those of the real device, each launch is compiled to its machine
code, and nothing is executed. One process serves one target: wrappers may remember what the device is like.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.compiler import CompiledKernel
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction


@dataclass(frozen=True)
class Device:
    """A GPU by what its kernels are compiled for, and what a block of threads may use of it."""

    target: GPUTarget
    shared_memory: int
    multiprocessors: int
    capability: tuple[int, int]


DEVICES = {
    "sm_80": Device(GPUTarget("cuda", 80, 32), 163 << 10, 108, (8, 0)),  # A100
    "sm_90": Device(GPUTarget("cuda", 90, 32), 227 << 10, 132, (9, 0)),  # H100, H200
    "gfx942": Device(GPUTarget("hip", "gfx942", 64), 64 << 10, 304, (9, 4)),  # MI300
}


@dataclass(frozen=True)
class Kernel:
    """A kernel as compiled for one target in one configuration.

    Attributes:
        name: of the function.
        target: key of `DEVICES`.
        arguments: type of each run-time argument, by name, as Triton writes it: "*bf16", "i64"; those of a
            tuple are "tensors.0", "tensors.1".
        constants: values of the compile-time arguments, by name, a function's name for itself, and
            `num_warps` and `num_stages`.
        instructions: in its machine code, each counted once however often it runs.
        registers: of a thread, 32-bit; on AMD those of its vectors.
        shared: bytes of shared memory of a block.
        spills: 0, or how much the kernel moves between registers and memory: instructions on NVIDIA, vector
            registers or bytes of a thread's private memory on AMD.
    """

    name: str
    target: str
    arguments: dict[str, str]
    constants: dict[str, Any]
    instructions: int
    registers: int
    shared: int
    spills: int

    @property
    def dtype(self) -> str:
        """The dtype of its first tensor, or what it is told where it gets addresses only."""
        tensors = (re.match(r"\*|tensordesc<", kind) and kind for kind in self.arguments.values())
        first = next(filter(None, tensors), "")
        return str(self.constants.get("DTYPE") or re.sub(r"\*|tensordesc<|\[.*", "", first))

    def described(self) -> str:
        """All that tells it from its siblings."""
        pointers = "/".join(kind for kind in self.arguments.values() if kind.startswith("*"))
        constants = ", ".join(f"{name}={value}" for name, value in self.constants.items())
        return f"{self.name}({pointers}; {constants}) on {self.target}"


class StubDriver(DriverBase):
    """Takes the place of the driver of `DEVICES[name]`. Launches compile and do nothing else.

    Attributes:
        failures: what went wrong in a configuration that the autotuner would have passed over.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._device = DEVICES[name]
        self.failures: list[Exception] = []
        self.utils = SimpleNamespace(
            load_binary=lambda *args: (object(), object(), 0, 0, 1024),  # up to 1024 threads a block
            unload_module=lambda module: None,
            get_device_properties=lambda index: {
                "max_shared_mem": self._device.shared_memory,
                "multiprocessor_count": self._device.multiprocessors,
                "max_num_regs": 65536,
                "warpSize": self._device.target.warp_size,
            },
        )
        self.launcher_cls = lambda source, metadata: lambda *args, **options: None

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return self._device.target

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, index: int) -> None:
        pass

    def get_current_stream(self, index: int | None = None) -> int:
        return 0

    def get_device_capability(self, index: int | None = None) -> tuple[int, int]:
        return self._device.capability

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Callable[..., list[float]]:
        def benchmark(call: Callable[[], object], quantiles: Sequence[float], **options: Any) -> list[float]:
            try:
                call()
            except Exception as error:
                self.failures.append(error)
                raise
            return [0.0] * len(quantiles)

        return benchmark


def install(name: str) -> StubDriver:
    """Make launches in this process compile for `DEVICES[name]`."""
    driver = StubDriver(name)
    triton.runtime.driver.set_active(driver)
    return driver


def compiled(package: ModuleType, target: str) -> Iterator[Kernel]:
    """What the launches of a package's kernels in this process have compiled."""
    for _, function in _functions(package):
        for binary in function.device_caches[0][0].values() if 0 in function.device_caches else ():
            source, metadata = binary.src, binary.metadata
            arguments = {n: kind for n, kind in _flat(source.signature) if kind != "constexpr"}
            constants = {
                function.arg_names[path[0]]: _shown(value)
                for path, value in source.constants.items()
                if source.signature[function.arg_names[path[0]]] == "constexpr"
            }
            constants |= {"num_warps": metadata.num_warps, "num_stages": metadata.num_stages}
            instructions, registers, spills = cost(binary)
            yield Kernel(
                metadata.name, target, arguments, constants, instructions, registers, metadata.shared, spills
            )


def cost(binary: CompiledKernel) -> tuple[int, int, int]:
    """Instructions, registers and spills of a kernel that was compiled."""
    return _nvidia_cost(binary.asm) if "cubin" in binary.asm else _amd_cost(binary.asm["amdgcn"])


def never_launched(package: ModuleType) -> set[str]:
    """What nothing has launched of a package's kernels, which by convention are called `..._kernel`, and of
    the functions that a kernel takes as an argument, called `..._step`.
    """
    launched, names = set(), set()
    for name, function in _functions(package):
        names |= {name} if name.endswith(("_kernel", "_step")) else set()
        for binary in function.device_caches[0][0].values() if 0 in function.device_caches else ():
            taken = (value for value in binary.src.constants.values() if isinstance(value, JITFunction))
            launched |= {name, *(value.__name__ for value in taken)}
    return names - launched


def _functions(package: ModuleType) -> Iterator[tuple[str, JITFunction]]:
    """What is decorated by `triton.jit` in the modules of a package, kernels and parts of kernels."""
    for info in iter_modules(package.__path__, package.__name__ + "."):
        module = import_module(info.name)
        for name, value in vars(module).items():
            while isinstance(value, Autotuner):
                value = value.fn
            if isinstance(value, JITFunction) and value.fn.__module__ == module.__name__:
                yield name, value


def _flat(signature: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and types, with tuples unpacked."""
    for name, kind in signature.items():
        if isinstance(kind, tuple):
            yield from _flat({f"{name}.{index}": part for index, part in enumerate(kind)})
        else:
            yield name, kind


def _shown(value: Any) -> Any:
    if isinstance(value, JITFunction):
        return value.__name__
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _nvidia_cost(assembly: dict[str, Any]) -> tuple[int, int, int]:
    """Instructions, registers and spills, by the disassembler that comes with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(assembly["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    mnemonics = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", text, re.MULTILINE)
    code = [mnemonic for mnemonic in mnemonics if mnemonic != "NOP"]  # NOP fills the last cache line
    registers = re.search(r"REG:(\d+)", text)
    assert code and registers is not None
    return len(code), int(registers[1]), sum(m.startswith(("STL", "LDL")) for m in code)


def _amd_cost(text: str) -> tuple[int, int, int]:
    """Instructions, vector registers and those of them in memory, by the assembly and what it says of itself.

    Scalars that wait in a lane of a vector register are in no memory.
    """
    code = re.findall(r"^\t(?:s|v|ds|buffer|global|flat|scratch)_\w+", text, re.MULTILINE)

    def noted(name: str) -> int:
        match = re.search(rf"\.{name}:\s*(\d+)", text)
        assert match is not None, name
        return int(match[1])

    spills = max(noted("vgpr_spill_count"), noted("private_segment_fixed_size"))
    return len(code), noted("vgpr_count"), spills
