"""Building a pretraining method by its name, from the table `transferkit.config.methods`."""

from pkgutil import resolve_name

from transferkit.config import Pretraining
from transferkit.config.methods import METHODS
from transferkit.errors import usage_error
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Method


def make_method(encoder: Encoder, options: Pretraining, seed: int, num_classes: int) -> Method:
    """Build the configured method around an encoder, its new networks seeded by `seed`."""
    kind = METHODS[options.method]
    labelled = {"classes": num_classes} if kind.reads_labels else {}
    make = resolve_name(f"{__package__}.{kind.function}")
    method: Method = make(encoder, options, seed, **labelled)
    return method


def views_of(encoder: Encoder, options: Pretraining) -> tuple[str, ...]:
    """Return the kinds of the views that the configured method learns from."""
    kind = METHODS[options.method]
    if kind.views_function is None:
        return kind.views
    views: tuple[str, ...] = resolve_name(f"{__package__}.{kind.views_function}")(encoder, options)
    return views


def check_process_count(options: Pretraining, number: int) -> None:
    """Raise a usage error if the method or batch size does not allow so many processes."""
    if number > 1 and METHODS[options.method].one_process:
        able = ", ".join(name for name, kind in METHODS.items() if not kind.one_process)
        what = f"--method {options.method} runs in one process, not in {number}"
        remedy = f"start it without torchrun, or take one of {able}"
        raise usage_error(what, "its batches cannot be divided", remedy)
    if options.batch_size < number:
        raise usage_error(f"--batch-size {options.batch_size} is too small for {number} processes")
