"""Runs of a second or less, of every kind that an interruption could change."""

from typing import Any

FINETUNE: dict[str, Any] = {
    "backbone.name": "cnn",
    "backbone.depth": 4,
    "backbone.width": 8,
    "backbone.image_size": 16,
    "backbone.batchnorm": ["before"],
    "augment.level": "none",
    "device.accelerator": "cpu",
    "device.engine": "torch",
    "training.batch_size": 9,
    "training.warmup": 0.0,
    "stages": "1:2@1e-2,3:1@5e-3",
}
WEIGHTS = "of a file"
"""In the place of a file of weights, which is made."""
KEPT = {"backbone.weights": WEIGHTS, "stages": "head:1@5e-2,2:2@5e-3"}
REWIND = {"training.on_divergence": "rewind", "stages": "1:2@1e-2,3:2@5e-3"}
VARIED = {"augment.level": "light", "augment.views": 1}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "three stages": {"stages": "1:2@1e-2,3:2@5e-3,all:1@5e-3"},
    "worsens": {"stages": "1:2@1e-2,3:1@9,all:1?"},
    "improves": {"stages": "1:1@1e-4,3:2@2e-2,all:1@5e-3?"},
    "WiSE-FT": KEPT | {"averaging.wise_ft": 0.5},
    "WiSE-FT auto": KEPT | {"averaging.wise_ft": "auto"},
    "SWA": {"averaging.swa": 0.75, "stages": "1:2@1e-2,3:2@5e-3"},
    "EMA": {"averaging.ema": 0.9},
    "rewind, forced": REWIND,
    "rewind, real": REWIND | {"averaging.ema": 0.9},
    "rewound too often": REWIND,
    "stops on divergence": {"stages": "1:2@1e-2,3:2@5e-3"},
    "performance": {"schedule.name": "performance", "schedule.patience": 0},
    "performance, run": {
        "schedule.name": "performance",
        "schedule.patience": 0,
        "schedule.scope": "run",
    },
    "1cycle, run": {
        "schedule.name": "1cycle",
        "schedule.scope": "run",
        "optimizer.name": "momentum",
    },
    "lr auto": {"training.lr": "auto", "stages": "1:2,3:1"},
    "budget": {"backbone.weights": WEIGHTS, "training.budget": "1h"},
    "live": VARIED | {"cache.enabled": False},
    "cached, then live": VARIED | {"stages": "2:1@1e-2,all:2@5e-3"},
    "clean, then varied": VARIED | {"stages": "1:3@1e-2,2:1@5e-3"},
    "recalibrated": {"training.batchnorm": "recalibrate", "backbone.weights": WEIGHTS},
    "frozen statistics": {"training.batchnorm": "frozen", "backbone.weights": WEIGHTS},
    "mixup": {"augment.mixup": 0.3, "augment.cutmix": 0.3},
    "sampler": {"data.balance": "sampler"},
    "loss weights": {"data.balance": "loss"},
    "accumulated": {"training.accumulate": 2},
    "held": {
        "clipping.adaptive": 0.05,
        "regularization.max_norm": 1.0,
        "regularization.l2_sp": 0.1,
        "backbone.weights": WEIGHTS,
    },
    "last weights": {"training.restore_best": False},
    "impatient": {"training.patience": 1, "training.min_delta": 0.9, "stages": "1:4,3:2"},
    "solved": KEPT | {"stages": "solve"},
    "solved, then trained": KEPT | {"stages": "solve,head:1@5e-2,2:1@5e-3"},
    "solved again": KEPT | {"stages": "solve,2:2@5e-3,solve"},
    "solved, then diverges": KEPT | {"stages": "solve,2:2@5e-3"},
    "dropout": {"head.dropout": [0.3], "optimizer.name": "nadam", "training.metric": "loss"},
    "compiled": {
        "backbone.name": "mlp",
        "backbone.depth": 1,
        "backbone.batchnorm": [],
        "device.compile": "on",
        "stages": "all:2@1e-2",
    },
}
PRETRAIN: dict[str, Any] = {
    "backbone.image_size": 32,
    "backbone.batchnorm": ["before"],
    "device.accelerator": "cpu",
    "pretraining.epochs": 3,
    "pretraining.batch_size": 9,
}
OWN = {"backbone.name": "cnn", "backbone.width": 4, "backbone.depth": 2}
DEEP = {"backbone.name": "cnn", "backbone.width": 8, "backbone.depth": 3}
PRETRAINING: dict[str, dict[str, Any]] = {
    "stacked": OWN | {"pretraining.method": "autoencoder", "pretraining.variant": "stacked"},
    "rbm": {
        "pretraining.method": "rbm",
        "pretraining.persistent": True,
        "backbone.activation": "logistic",
        "backbone.name": "mlp",
        "backbone.batchnorm": [],
        "backbone.image_size": 16,
        "backbone.depth": 2,
        "backbone.width": 24,
    },
    "gan": OWN | {"pretraining.method": "gan"},
    "byol": DEEP | {"pretraining.method": "byol", "pretraining.projection": 32},
    "dino": DEEP | {"pretraining.method": "dino"},
    "jigsaw": OWN | {"pretraining.method": "jigsaw", "pretraining.permutations": 4},
    "supervised": DEEP | {"pretraining.method": "supervised"},
}
SAMPLE = {"worsens": 3, "WiSE-FT": 2, "rewind, forced": 3, "stops on divergence": 2, "byol": 2}
"""Configuration -> of how many trials, drawn by seed, `make test` runs one: every third, ..."""
