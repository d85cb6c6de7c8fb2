"""The verb `export`: a run's model as a file for other programs, compared with the original."""

import copy
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferkit.backbones.engine import TOLERANCE, torch_runner
from transferkit.backbones.folding import Folding, fold_batchnorm
from transferkit.config import Config
from transferkit.data.index import DatasetIndex
from transferkit.data.loader import CLEAN, ViewMaker, ahead, epoch_order
from transferkit.errors import UserError, usage_error
from transferkit.events import Notice, Show, Working, drain
from transferkit.exporting.compare import Comparison, compare
from transferkit.exporting.formats import (
    FORMATS,
    Files,
    onnx_bytes,
    openvino_files,
    with_metadata,
)
from transferkit.exporting.int8 import BATCH, quantized
from transferkit.exporting.sparsity import Retraining, pruned, zeros
from transferkit.files.atomic_write import disk_error, make_inside, write_atomically
from transferkit.finetuning.pictures import scan_pictures
from transferkit.inference.deployed import DTYPES, Deployed
from transferkit.inference.exported import OPENERS, import_openvino, open_exported
from transferkit.inference.predict import LoadedRun, load_run
from transferkit.inference.weights_file import REBUILDS
from transferkit.recipes.reading import config_of
from transferkit.runs.folder import MODEL, open_run
from transferkit.runs.life import moved
from transferkit.runs.lock import only_process
from transferkit.training.picks import batches
from transferkit.training.settings import loop_settings

NOISE = 32  # images of it, where there are no pictures


@dataclass(frozen=True)
class ExportOptions:
    """What to export. data: labelled pictures to compare on; None: those of the run.

    fold_batchnorm: None is what is usual for the format. max_accuracy_drop: 0..1; a model that
    loses more is not kept. pictures: at most so many validation pictures are compared, and
    calibration_pictures of training calibrate. sparsity, sparse_epochs: see `pruned`; 0 is off.
    """

    format: str = "onnx"
    precision: str = "fp32"
    fold_batchnorm: bool | None = None
    max_accuracy_drop: float = 0.015
    data: Path | None = None
    pictures: int = 300
    calibration_pictures: int = 96
    sparsity: float = 0.0
    sparse_epochs: int = 0

    @property
    def folds(self) -> bool:
        """Whether batch norms are folded."""
        usual = FORMATS[self.format].folds
        return usual if self.fold_batchnorm is None else self.fold_batchnorm


def export(
    run: Path, output: Path | None, options: ExportOptions, show: Show
) -> tuple[Path, Comparison]:
    """Write a run's model, load it back, compare, and keep it only if it is good enough.

    output: the file to write; None: RUN/exports/model[-PRECISION][-sparse].SUFFIX.
    Raises UserError for what the format cannot do, and when too much accuracy is lost.
    """
    suffix = refuse_combinations(options, output)
    folder = open_run(run)
    show(Working("loading the model"))
    loaded = load_run(folder)
    config = config_of(folder)
    index = pictures_to_compare(config, options, folder.path, loaded.classes, show)
    images = noise(loaded)
    labels: Tensor | None = None
    if index is not None:
        images, labels = views(index, loaded.maker, "val", options.pictures)
    original = torch_runner(copy.deepcopy(loaded.classifier), torch.device("cpu"))
    if options.sparsity:
        assert index is not None
        loaded = thinned_out(loaded, index, options, config, show)
    show(Working(f"writing {options.format}"))
    files, folding = made_files(loaded, index, options, images[:2], show)
    kinds = [] if options.precision == "fp32" else [options.precision]
    kinds += ["sparse"] if options.sparsity else []
    target = output or run / "exports" / f"{'-'.join(['model', *kinds])}{suffix}"
    before = (run / MODEL).stat().st_size
    try:
        if output is None:
            make_inside(run, target.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        with only_process(target), waiting_room(target) as waiting:
            for end, data in files.items():
                path = (waiting / target.name).with_suffix(end)
                write_atomically(path, lambda file, data=data: file.write(data))  # type: ignore[misc]
            show(Working("comparing with the original"))
            _, engine = open_exported(waiting / target.name, trusted=True)
            sizes = (before, sum(map(len, files.values())))
            result = compare(original, engine.run, images, labels, sizes)
            result = replace(
                result,
                sparsity=zeros(loaded.classifier) if options.sparsity else 0.0,
                folded=len(folding.pairs),
                unfolded=folding.left,
            )
            refuse_losses(result, options)
            for end in files:
                os.replace((waiting / target.name).with_suffix(end), target.with_suffix(end))
    except OSError as error:
        raise disk_error(target.parent, error) from error
    return target, result


def pictures_to_compare(
    config: Config, options: ExportOptions, run: Path, classes: Sequence[str], show: Show
) -> DatasetIndex | None:
    """Return the labelled pictures to compare on; None, told, where those of the run are gone.

    Raises UserError where --data names others that cannot be used, or where they are needed.
    """
    remedy = "name the right pictures with --data"
    own = options.data is None
    try:
        if own:
            config = moved(config, None, None, run)
        else:
            data = replace(config.data, path=options.data, manifest=None, corrections=None)
            config = replace(config, data=data)
        index = scan_pictures(config, show, "measure")
    except UserError as problem:
        needs = options.precision == "int8" or options.sparsity
        if not own or needs:
            raise replace(problem, remedy=remedy) from None
        text = f"not compared on pictures, but on noise: {problem.what}; {remedy}"
        show(Notice(text, warning=True))
        return None
    strangers = [name for name in index.classes if name not in classes]
    if strangers:
        raise usage_error(
            "the pictures have other classes than the model",
            f"{', '.join(strangers[:10])} are not among {', '.join(classes[:10])}",
            remedy,
        )
    labels = np.array([classes.index(name) for name in index.classes])[index.labels]
    return replace(index, classes=tuple(classes), labels=labels)


def noise(loaded: LoadedRun) -> Tensor:
    """Return images (N, 3, H, W) uint8 of noise, always the same."""
    size = loaded.maker.preprocessing
    shape = (NOISE, 3, size.height_px, size.width_px)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@contextmanager
def waiting_room(target: Path) -> Iterator[Path]:
    """Make a folder beside a file for its first draft, and take it away in the end.

    Its name is fixed, so that what a killed process left behind goes with the next export.
    """
    folder = target.with_name(f".{target.name}.draft")
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def refuse_combinations(options: ExportOptions, output: Path | None) -> str:
    """Raise a usage error for what a format cannot do, before anything is read.

    Return how the name of such a file ends.
    """
    known = FORMATS[options.format].precisions
    if options.precision not in known:
        raise usage_error(
            f"--format {options.format} has no --precision {options.precision}",
            f"it has: {', '.join(known)}",
        )
    if options.sparsity and not FORMATS[options.format].sparse:
        raise usage_error(
            f"--sparsity has no effect with --format {options.format}",
            "it stores zeros in full, and its kernels compute with them",
            "use --format safetensors",
        )
    if options.sparse_epochs and not options.sparsity:
        raise usage_error("--sparse-epochs has no effect without --sparsity")
    if options.format == "openvino":
        import_openvino("the format openvino")
    suffix = next(end for end, (name, _) in OPENERS.items() if name == options.format)
    if output is not None and output.suffix != suffix:
        raise usage_error(f"--output {output}: the name must end in {suffix}")
    return suffix


def refuse_losses(result: Comparison, options: ExportOptions) -> None:
    """Raise UserError when the exported model is worse than was allowed."""
    drop = result.accuracy_drop
    if drop is not None and drop > options.max_accuracy_drop:
        raise UserError(
            f"not exported: accuracy falls from {result.accuracy_before:.1%} to "
            f"{result.accuracy_after:.1%} on {result.pictures} pictures",
            f"that is {100 * drop:.1f} points; "
            f"--max-accuracy-drop allows {100 * options.max_accuracy_drop:.1f}",
            "choose a lower --sparsity, more --sparse-epochs, or allow more"
            if options.sparsity
            else "choose a higher --precision, or allow more",
        )
    exact = options.precision == "fp32" and not options.sparsity
    if exact and not result.relative_difference <= TOLERANCE:
        raise UserError(
            "not exported: the exported model computes something else",
            f"its outputs differ by {result.relative_difference:.1e} of the largest",
            "try another --format, or --no-fold-batchnorm",
        )


def made_files(
    loaded: LoadedRun,
    index: DatasetIndex | None,
    options: ExportOptions,
    example: Tensor,
    show: Show,
) -> tuple[Files, Folding]:
    """Return the exported model: suffix -> bytes; and which batch norms are folded."""
    network = Deployed(copy.deepcopy(loaded.classifier), torch.float32).eval()
    folding = Folding()
    if options.folds:
        made, folding = fold_batchnorm(network, example)
        network = made  # type: ignore[assignment]
        show(Notice(folding.text))
    about = description(loaded, options, folding)
    if options.precision != "int8":
        dtype = DTYPES[options.precision]
        network = Deployed(network.classifier, dtype).eval()
        return FORMATS[options.format].write(network, example, about), folding
    assert index is not None
    calibration, _ = views(index, loaded.maker, "train", options.calibration_pictures)
    if len(calibration) < BATCH:
        raise usage_error(f"int8 needs {BATCH} training pictures, there are {len(calibration)}")
    model = quantized(onnx_bytes(network, example, about), calibration.numpy())
    data = with_metadata(model, about)
    onnx = options.format == "onnx"
    return {".onnx": data} if onnx else openvino_files(data, about, False), folding


def thinned_out(
    loaded: LoadedRun,
    index: DatasetIndex,
    options: ExportOptions,
    config: Config,
    show: Show,
) -> LoadedRun:
    """Return the model with its smallest weights at zero, after `sparse_epochs` as its run has."""
    level, settings = config.augment.level, loop_settings(config)
    maker = replace(loaded.maker, level=level, flip=config.augment.flip)
    train = index.of_split("train")
    if options.sparse_epochs and len(train) < 2:
        raise usage_error("--sparse-epochs needs training pictures", "", "name others with --data")

    def batches_of(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = epoch_order(index.labels[train], "none", 0, epoch)
        picks = batches(train[order], settings.batch_size)

        def one(position: int) -> np.ndarray:
            file = index.file(position)
            return maker.views(file, position, (epoch + 1 if level != "none" else CLEAN,))

        made = ahead(one, (int(position) for pick in picks for position in pick))
        for pick in picks:
            images = np.concatenate([next(made) for _ in pick])
            yield torch.from_numpy(images), torch.from_numpy(index.labels[pick])

    retraining = Retraining(
        options.sparse_epochs,
        len(batches(train, settings.batch_size)),
        batches_of,
        settings.rules,
        settings.schedule,
        config.training.unfrozen_lr,
        config.training.label_smoothing,
    )
    events = pruned(
        loaded.classifier, options.sparsity, retraining if options.sparse_epochs else None
    )
    return replace(loaded, classifier=drain(events, show))


def description(loaded: LoadedRun, options: ExportOptions, folding: Folding) -> dict[str, Any]:
    """Return what an exported model says of itself: all that is needed to use it."""
    names = ("classes", "preprocessing", "background", "backbone", "license")
    more = {}
    if options.format == "safetensors":  # the others hold the network itself
        more = {"network": {n: loaded.description[n] for n in REBUILDS if n in loaded.description}}
    return {
        **{name: loaded.description[name] for name in names},
        **loaded.maker.reading.entries(),
        **more,
        "temperature": loaded.temperature,
        "precision": options.precision,
        "folded_batchnorms": len(folding.pairs),
        "folded": folding.pairs,
        "sparsity": options.sparsity,
        "input": "images: uint8 (N, 3, H, W), RGB 0..255, resized as preprocessing says",
        "output": "logits: float32 (N, K); probabilities are softmax(logits / temperature)",
        "transferkit": version("transferkit"),
    }


def views(index: DatasetIndex, maker: ViewMaker, split: str, most: int) -> tuple[Tensor, Tensor]:
    """Return the clean views (N, 3, H, W) uint8 and labels (N,) of a split, evenly thinned out."""
    every = index.of_split(split)
    if not len(every):
        raise usage_error(f"there are no {split} pictures", "", "name others with --data")
    count = min(most, len(every))
    chosen = every[np.linspace(0, len(every) - 1, count).round().astype(int)]
    files = [index.file(int(position)) for position in chosen]
    made = list(ahead(lambda file: maker.views(file, 0, (CLEAN,)), files))
    return torch.from_numpy(np.concatenate(made)), torch.from_numpy(index.labels[chosen])


def to_dict(path: Path, result: Comparison) -> dict[str, Any]:
    """Return the outcome for --json."""
    return {"output": path, **asdict(result), "accuracy_drop": result.accuracy_drop}
