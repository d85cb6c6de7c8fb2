"""No command loads a heavy module that it does not use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import json, sys
from transferkit.cli import main
sys.argv = ["transferkit", *json.loads(sys.argv[1])]
try:
    main()
except SystemExit as left:
    assert not left.code, left.code
print("\\n" + json.dumps(sorted(sys.modules)))
"""
TRAINING = {"lightning_fabric", "lightly", "torchmetrics", "sklearn", "scipy", "matplotlib"}
RARE = {"torch._dynamo", "sympy", "onnx", "onnxruntime", "pyarrow", "huggingface_hub.hf_api"}
NETWORKS = {"torch", "timm", "torchvision", "onnx", "onnxruntime", "huggingface_hub"}
UNUSED = {
    "predict": TRAINING | RARE,
    "embed": TRAINING | RARE,
    "inspect": TRAINING | NETWORKS,
    "compare": {"lightning_fabric", "lightly", "torchmetrics", "sklearn", "scipy"} | NETWORKS,
    "explain": TRAINING | NETWORKS | {"numpy", "PIL"},
    "recipes": TRAINING | NETWORKS | {"numpy", "PIL"},
}


@pytest.mark.parametrize("command", UNUSED)
def test_a_command_loads_only_what_it_uses(
    command: str, run: Path, other: Path, pictures: Path, tmp_path: Path
) -> None:
    picture = next(path for path in sorted(pictures.rglob("*")) if path.is_file())
    given = {
        "predict": [run, picture],
        "embed": [run, picture, "-o", tmp_path / "features.safetensors"],
        "inspect": [pictures],
        "compare": [run, other],
    }
    arguments = json.dumps([command, *map(str, given.get(command, []))])
    # old versions of libraries may warn
    heed = os.environ.get("TRANSFERKIT_TEST_WARNINGS", "error")
    env = {**os.environ, "PYTHONWARNINGS": heed}
    done = subprocess.run(
        [sys.executable, "-c", CODE, arguments], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    assert UNUSED[command] & set(json.loads(done.stdout.splitlines()[-1])) == set()
