"""Weights from timm's model hub: what lies in the local cache, and whether the hub answers."""

import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub import constants

ANSWER_WITHIN_S = 5.0


def hub_address(config: Mapping[str, Any]) -> str:
    """Return where a pretrained configuration's weights come from; "" when there are none."""
    if config.get("hf_hub_id"):
        return f"{constants.ENDPOINT}/{config['hf_hub_id']}"
    return str(config.get("url") or "")


def cached_weights(config: Mapping[str, Any]) -> Path | None:
    """Return the weights file of a pretrained configuration if it lies in the local cache."""
    if config.get("hf_hub_id"):
        repository, _, revision = str(config["hf_hub_id"]).partition("@")
        name = str(config.get("hf_hub_filename") or constants.PYTORCH_WEIGHTS_NAME)
        usual = name == constants.PYTORCH_WEIGHTS_NAME
        stem = name.rpartition(".")[0]
        safer = constants.SAFETENSORS_SINGLE_FILE if usual else f"{stem}.safetensors"
        for filename in (safer, name):
            cached = huggingface_hub.try_to_load_from_cache(
                repository, filename, revision=revision or None
            )
            if isinstance(cached, str):
                return Path(cached)
        return None
    if url := config.get("url"):
        name = Path(urllib.parse.urlparse(str(url)).path).name
        path = Path(torch.hub.get_dir()) / "checkpoints" / name
        return path if path.is_file() else None
    return None


def why_unreachable(address: str) -> str:
    """Return why a server cannot be reached, "" when it answers (with any status).

    The libraries below retry for the better part of a minute; this asks once, for a few seconds,
    name lookup included.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    reasons: list[str] = []

    def ask() -> None:
        request = urllib.request.Request(address, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=ANSWER_WITHIN_S).close()
        except urllib.error.HTTPError:
            reasons.append("")
        except (OSError, ValueError) as error:
            reasons.append(str(getattr(error, "reason", error)) or type(error).__name__)
        else:
            reasons.append("")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_WITHIN_S + 1)
    return reasons[0] if reasons else f"no answer within {ANSWER_WITHIN_S:.0f} s"
