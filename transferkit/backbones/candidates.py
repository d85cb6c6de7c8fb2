"""Backbones to choose among: what lies on this machine, and a few more where the hub answers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import transferkit.timm_import  # noqa: F401  # isort: skip
import timm
from huggingface_hub import constants

from transferkit.backbones.create import EMBEDDED, pretrained_config
from transferkit.backbones.hub import cached_weights, why_unreachable

LARGEST_BYTES = 400_000_000
"""Files in the hub's cache that are larger, of 100 M parameters, are not tried unless named."""

HUB_FOLDER = "--".join(("models", "timm", ""))
"""How the hub's cache calls the folders of timm's models."""


@dataclass(frozen=True)
class Known:
    """What is known of a model's weights.

    parameters: millions, with its ImageNet classifier. license: as timm declares it. imagenet:
    accuracy in percent at the test size `tested_px`.
    """

    parameters: float
    license: str
    imagenet: float
    tested_px: int


KNOWN = {
    "mobilenetv3_small_100.lamb_in1k": Known(2.54, "apache-2.0", 67.656, 224),
    "tf_efficientnet_lite0": Known(4.65, "apache-2.0", 74.830, 224),
    "tf_efficientnet_lite1": Known(5.42, "apache-2.0", 76.644, 240),
    "mobilenetv3_large_100.miil_in21k_ft_in1k": Known(5.48, "apache-2.0", 77.918, 224),
    "tf_efficientnet_lite2": Known(6.09, "apache-2.0", 77.464, 260),
    "tf_efficientnetv2_b0.in1k": Known(7.14, "apache-2.0", 78.358, 224),
    "rexnetr_200.sw_in12k_ft_in1k": Known(16.52, "apache-2.0", 83.136, 288),
    "tf_efficientnetv2_s.in21k_ft_in1k": Known(21.46, "apache-2.0", 84.288, 384),
    "deit3_small_patch16_224.fb_in22k_ft_in1k": Known(22.06, "apache-2.0", 83.074, 224),
    "caformer_s18.sail_in22k_ft_in1k": Known(26.34, "apache-2.0", 84.076, 224),
    "convnext_tiny.in12k_ft_in1k": Known(28.59, "apache-2.0", 84.450, 288),
    "convnext_small.in12k_ft_in1k": Known(50.22, "apache-2.0", 85.330, 288),
    "vit_base_patch16_clip_224.openai_ft_in12k_in1k": Known(86.57, "apache-2.0", 85.940, 224),
    "convnext_base.fb_in22k_ft_in1k": Known(88.59, "apache-2.0", 86.274, 288),
}
"""From the smallest to the largest. Source: results/results-imagenet.csv of timm's repository at
commit 0173a139; licences from timm's pretrained configurations."""


def find_candidates() -> tuple[list[str], str]:
    """Return the names of backbones to try, the smallest first, and why there are no others.

    A hub that does not answer is asked once.
    """
    here = [name for name, embedded in EMBEDDED.items() if embedded.path()]
    here += list(in_hub_cache())
    reason = why_unreachable(constants.ENDPOINT)
    if not reason:
        here += [name for name in KNOWN if name not in EMBEDDED]
    order = list(KNOWN)
    here = sorted(dict.fromkeys(here), key=lambda n: order.index(n) if n in order else len(order))
    return here, reason


def in_hub_cache() -> Iterator[str]:
    """Yield the timm models whose weights were downloaded before."""
    for folder in sorted(Path(constants.HF_HUB_CACHE).glob(f"{HUB_FOLDER}*")):
        name = folder.name.removeprefix(HUB_FOLDER)
        if not timm.is_model(name.partition(".")[0]):
            continue
        path = cached_weights(pretrained_config(name))
        if path is not None and path.stat().st_size <= LARGEST_BYTES:
            yield name.removesuffix(".in1k") if name.removesuffix(".in1k") in EMBEDDED else name
