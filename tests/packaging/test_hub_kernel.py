"""The kernel repository of tools/hub_kernel.py, loaded by Hugging Face's `kernels` beside the package.

MOBIZO_HUB_KERNEL names the folder of the repository; tests/wheel.sh makes one and runs this.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mobizo_kernels import ops, reference

kernels = pytest.importorskip("kernels")
REPOSITORY = Path(os.environ.get("MOBIZO_HUB_KERNEL", ""))
pytestmark = pytest.mark.skipif("MOBIZO_HUB_KERNEL" not in os.environ, reason="no kernel repository was made")
SEEDS, COEFFS = torch.tensor([3, -5]), torch.tensor([0.5, -0.25])


@pytest.fixture(scope="module")
def variant() -> Path:
    (folder,) = (REPOSITORY / "build").iterdir()
    return folder


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    return kernels.get_local_kernel(REPOSITORY, backend="cpu")


def test_metadata_names_every_file(variant: Path) -> None:
    from kernels._rust import Digest, DigestAlgorithm, Metadata

    metadata = Metadata.read_from_file(variant / "metadata.json")
    assert metadata.id.startswith("_mobizo_cpu_")
    assert metadata.digest is not None
    metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, variant))


def test_binary_keeps_the_rules(variant: Path) -> None:
    """No symbol newer than manylinux_2_28, none of Python's outside of its limited interface of 3.9."""
    from kernel_abi_check import ObjectFile

    (library,) = variant.glob("*.so")
    binary = ObjectFile(str(library))
    assert not binary.check_manylinux("manylinux_2_28")
    assert not binary.check_python_abi("3.9")


def test_imports_are_relative(variant: Path) -> None:
    """Only the standard library, torch and the kernel itself, which has no name of its own."""
    for file in variant.rglob("*.py"):
        source = file.read_text()
        assert not re.search(r'(torch\.ops\.|Library\("|register_\w+\(f?")mobizo', source), file.name
        for node in ast.walk(ast.parse(source)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [str(node.module)]
            for name in names:
                top = name.partition(".")[0]
                assert top == "torch" or top in sys.stdlib_module_names, f"{file.name}: {name}"


def test_it_has_the_ops_of_the_package(kernel: ModuleType) -> None:
    missing = [name for name in dir(ops) if callable(getattr(ops, name)) and not hasattr(kernel, name)]
    assert not missing


def test_same_bits_as_the_package(kernel: ModuleType) -> None:
    expected = reference.perturb(torch.zeros(7, 9), SEEDS, COEFFS, stream=11)
    assert torch.equal(kernel.perturb_(torch.zeros(7, 9), SEEDS, COEFFS, stream=11), expected)
    torch.manual_seed(0)
    x, a, b = torch.randn(6, 8), torch.randn(4, 8), torch.randn(5, 4)
    arguments = (torch.zeros(6, 5), x, a, b, SEEDS, COEFFS, 2.0, 7)
    assert torch.equal(kernel.mp_lora(*arguments), ops.mp_lora(*arguments))


def test_ops_are_not_those_of_the_package(kernel: ModuleType) -> None:
    loaded = next(each for each in kernels.get_loaded_kernels() if each.module is kernel)
    assert getattr(torch.ops, loaded.metadata.id).noise.default is not torch.ops.mobizo.noise.default
    with pytest.raises(RuntimeError, match="distribution"):
        kernel.noise((3,), torch.tensor([1]), 5, "cauchy")


def test_fakes_and_gradients(kernel: ModuleType) -> None:
    """torch.compile takes an op without a break, and mp_lora is differentiable."""
    seed = torch.tensor([1])
    compiled = torch.compile(lambda s: 2 * kernel.noise((4, 4), s, 7), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(seed), 2 * kernel.noise((4, 4), seed, 7))
    b = torch.randn(5, 4, requires_grad=True)
    kernel.mp_lora(
        torch.zeros(6, 5), torch.randn(6, 8), torch.randn(4, 8), b, SEEDS, COEFFS, 2.0, 7
    ).sum().backward()
    assert b.grad is not None and b.grad.abs().max() > 0
