import subprocess
import sys

import pytest
import torch

import transferkit.timm_import as torchvision_ops  # isort: skip
import huggingface_hub
from timm.models import _hub as timm_hub
from torchvision.ops import roi_align


def in_a_new_process(*lines: str) -> list[str]:
    """Return what the lines print in a process that has imported nothing before."""
    command = [sys.executable, "-W", "error", "-c", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_compiler_and_the_hub_are_loaded_when_they_are_called() -> None:
    assert in_a_new_process(
        "import sys, transferkit.timm_import as ops",
        "late = {'torch._dynamo', 'torch._dynamo.utils', 'sympy', 'huggingface_hub.hf_api'}",
        "print(len(late & set(sys.modules)), 'timm.models' in sys.modules)",
        "from timm.models import _hub, naflexvit",
        "print(_hub.has_hf_hub(), isinstance(sys.modules['huggingface_hub'], ops.Placeholder))",
        "iterator = naflexvit.NaFlexRopeIterator.__new__(naflexvit.NaFlexRopeIterator)",
        "iterator._depth_idx = iterator.depth = 1",
        "print(next(iterator, 'over'), 'torch._dynamo' in sys.modules)",
        "import torch",
        "print(torch._dynamo.__spec__.name)",
    ) == ["0", "True", "True", "False", "over", "True", "torch._dynamo"]


def test_whoever_wants_more_of_a_late_module_gets_the_module() -> None:
    assert in_a_new_process(
        "import sys, transferkit.timm_import as ops",
        "with ops.placeholders():",
        "    from huggingface_hub import HfApi",
        "    print(HfApi.__name__)",
        "    from torch._dynamo.utils import counters",
        "    print(type(counters).__name__, 'sympy' in sys.modules)",
        "    from huggingface_hub import HfApi",
        "    print(HfApi.__name__)",
        "print(any(isinstance(module, ops.Placeholder) for module in sys.modules.values()))",
    ) == ["call", "defaultdict", "True", "HfApi", "False"]


def test_late_functions_are_those_of_their_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = sys.modules[roi_align.__module__].is_compile_supported("cpu")
    assert asked == torch._dynamo.utils.is_compile_supported("cpu")

    def download(*arguments: object, **named: object) -> tuple[object, ...]:
        return arguments, named["library_name"]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert timm_hub.hf_hub_download("a", "b") == (("a", "b"), "timm")
    from huggingface_hub.errors import EntryNotFoundError

    assert timm_hub.EntryNotFoundError is EntryNotFoundError


def test_a_function_stays_marked_as_not_to_be_compiled() -> None:
    calls = []

    def plain(x: torch.Tensor) -> torch.Tensor:
        calls.append(torch.compiler.is_compiling())
        return x + 1

    marked = torchvision_ops.disable(plain, True, reason="")
    assert marked.__name__ == "plain"
    assert marked(torch.ones(1)).item() == 2
    assert calls == [False]
