"""How layers start: the spelling of initialisers, and which one goes with which activation.

Free of torch, so that a wrong name is refused at once; `transferkit.backbones.layers` has the
functions behind the names.
"""

import math
import re
from dataclasses import dataclass

FANS = ("in", "out", "avg")
SCALES = {"glorot": (1.0, "avg"), "he": (2.0, "in"), "lecun": (1.0, "in")}
"""Scheme -> (scale, usual fan): the weights' variance is scale / fan."""
SHAPES = ("normal", "uniform")
SPELLING = (
    "glorot_normal, glorot_uniform, he_..., lecun_..., each maybe with :in, :out or :avg; "
    "orthogonal, orthogonal:GAIN, zeros, normal:STD"
)

GLOROT_LIKE = ("identity", "tanh", "logistic", "softmax")
PAIRED = dict.fromkeys(GLOROT_LIKE, "glorot_normal") | {"selu": "lecun_normal"}
"""Activation -> its initialiser; ReLU and all its variants have `he_normal`."""
FITTING = {"glorot": ("glorot", "lecun"), "he": ("he",), "lecun": ("lecun",)}
"""Scheme of the pairing -> schemes that do as well there."""
TOLERATED = {"normal": 2.0, "orthogonal": 1.5}
"""A size that is given fits while the variance is at most this many times too large or small."""


@dataclass(frozen=True)
class Initializer:
    """A parsed initialiser. kind: "glorot_normal", "orthogonal", "zeros", "normal" ...

    fan: "in", "out" or "avg" where the kind has one, else "". value: the standard deviation of
    `normal`, the gain of `orthogonal`.
    """

    kind: str
    fan: str = ""
    value: float = 1.0

    @property
    def scheme(self) -> str:
        """The kind without its distribution: "glorot", "he", "lecun", else the kind itself."""
        return self.kind.rpartition("_")[0] or self.kind

    def variance(self, fan_in: int, fan_out: int) -> float:
        """Return the variance of the weights of a layer with these fans; 0 for zeros.

        Source: Glorot and Bengio, AISTATS 2010; He et al., ICCV 2015; LeCun et al., "Efficient
        BackProp", 1998; orthogonal: a matrix with orthonormal rows or columns has mean square
        1 / max(fans) (Saxe et al., ICLR 2014).
        """
        if self.kind == "zeros":
            return 0.0
        if self.kind == "normal":
            return self.value**2
        if self.kind == "orthogonal":
            return self.value**2 / max(fan_in, fan_out)
        fan = {"in": fan_in, "out": fan_out, "avg": (fan_in + fan_out) / 2}[self.fan]
        return SCALES[self.scheme][0] / fan


def parse_initializer(text: str) -> Initializer:
    """Read `he_normal`, `glorot_uniform:in`, `orthogonal:1.4`, `normal:0.05`.

    Raises ValueError, whose text says what is allowed.
    """
    kind, colon, rest = text.strip().partition(":")
    scheme, _, shape = kind.rpartition("_")
    if scheme in SCALES and shape in SHAPES:
        fan = rest.removeprefix("fan_") if colon else SCALES[scheme][1]
        if fan in FANS:
            return Initializer(kind, fan)
        raise ValueError(f"{text!r}: after the colon comes in, out or avg")
    if kind == "zeros" and not colon:
        return Initializer(kind)
    number = float(rest) if re.fullmatch(r"\d*\.?\d+([eE][+-]?\d+)?|\d+\.", rest) else math.nan
    if kind == "orthogonal" and not colon:
        return Initializer(kind)
    if kind in ("orthogonal", "normal") and 0 < number < math.inf:
        return Initializer(kind, value=number)
    if kind == "normal":
        raise ValueError(f"{text!r}: give a standard deviation above 0, e.g. normal:0.05")
    raise ValueError(f"{text!r} is not known; there are {SPELLING}")


def paired_initializer(activation: str) -> str:
    """Return the initialiser that goes with an activation, or with "softmax" (the classifier).

    Glorot keeps the variance through layers that are near the identity at 0, He makes up for the
    half that ReLU cuts off, LeCun is what SELU's fixed point was derived for.
    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", AISTATS 2010; He et al., "Delving Deep into Rectifiers", ICCV 2015; Klambauer et
    al., "Self-Normalizing Neural Networks", NeurIPS 2017.
    """
    return PAIRED.get(activation, "he_normal")


def misfit(initializer: str, activation: str, fan_in: int, fan_out: int) -> str:
    """Return why an initialiser does not go with an activation in a layer of these fans, or "".

    Schemes are judged by name, fixed variances (normal:STD, orthogonal:GAIN) by their size.
    """
    chosen = parse_initializer(initializer)
    paired = parse_initializer(paired_initializer(activation))
    if chosen.kind == "zeros":
        return "all units of a layer start alike and stay alike"
    if tolerated := TOLERATED.get(chosen.kind):
        ratio = chosen.variance(fan_in, fan_out) / paired.variance(fan_in, fan_out)
        if chosen.kind == "orthogonal":
            ratio = chosen.value**2 / SCALES[paired.scheme][0]
        if max(ratio, 1 / ratio) <= tolerated + 1e-9:
            return ""
        size = f"{ratio:,.0f} times" if ratio > 10 else f"{ratio:.2g} times"
        return f"its variance is {size} what keeps the signal's size from layer to layer"
    if chosen.scheme in FITTING[paired.scheme]:
        return ""
    return {
        "he": f"its variance is made for ReLU and its variants, not for {activation}",
        "glorot": f"its variance is not what {activation} needs",
        "lecun": f"its variance is half of what {activation} needs",
    }[chosen.scheme]
