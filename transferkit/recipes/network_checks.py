"""Network options that contradict each other or would have no effect."""

from collections.abc import Iterator

from transferkit.config.initializers import parse_initializer
from transferkit.config.network import AUTO, BackboneOptions, HeadOptions

SLOPED = ("leaky_relu", "prelu")
ONLY_FROM_SCRATCH = (
    *("depth", "width", "activation", "slope", "initializer", "batchnorm"),
    *("dropout", "dropout_kind", "skip"),
)


def network_problems(backbone: BackboneOptions, head: HeadOptions, batch_size: int) -> list[str]:
    """List the problems of the sections `backbone` and `head`, each with its key."""
    found = [
        *initializer_problems(backbone, head),
        *head_problems(head, backbone.name == "mlp" and backbone.activation == "selu"),
        *reuse_problems(backbone),
    ]
    if backbone.crop in ("squash", "pad") and backbone.crop_share is not None:
        what = f"backbone.crop_share has no effect with backbone.crop = {backbone.crop}"
        found.append(f"{what}, which keeps the whole picture: leave it out")
    found += scratch_problems(backbone) if backbone.from_scratch else timm_problems(backbone)
    for key, places in (("head", head.batchnorm), ("backbone", backbone.batchnorm)):
        if "before" in places and "after" in places:
            found.append(f"{key}.batchnorm: before and after the activation contradict each other")
        if places and batch_size == 1:
            found.append(f"{key}.batchnorm needs training.batch_size of 2 or more")
    return found


def reuse_problems(backbone: BackboneOptions) -> Iterator[str]:
    """Yield what is wrong with keeping only the lowest blocks' weights."""
    if backbone.reuse_blocks is not None and backbone.starts_random:
        yield "backbone.reuse_blocks needs pretrained weights: there are none to keep"


def batchnorm_problems(backbone: BackboneOptions, batchnorm: str) -> Iterator[str]:
    """Yield what is wrong with how the backbone's batch-norm statistics are treated."""
    if batchnorm != "train" and backbone.starts_random:
        yield (
            f"training.batchnorm {batchnorm} needs pretrained weights: random ones have no "
            "statistics to keep or to correct"
        )


def initializer_problems(backbone: BackboneOptions, head: HeadOptions) -> Iterator[str]:
    """Yield a line for every initialiser that cannot be read."""
    for key, text in (
        ("backbone.initializer", backbone.initializer),
        ("head.initializer", head.initializer),
        ("head.classifier_initializer", head.classifier_initializer),
    ):
        try:
            parse_initializer(text or "zeros")
        except ValueError as error:
            yield f"{key} {error}"


def head_problems(head: HeadOptions, selu_features: bool) -> Iterator[str]:
    """Yield what is wrong with the new layers. selu_features: they follow a layer of SELU."""
    hidden = bool(head.layers)
    no_effect = "has no effect without head.layers: add --head-layers"
    if not hidden and head.activation != "relu":
        yield f"head.activation {no_effect}"
    if not hidden and head.initializer is not None:
        yield f"head.initializer {no_effect}, or use --classifier-initializer"
    if not hidden and set(head.batchnorm) - {"first"}:
        yield f"head.batchnorm before or after activations {no_effect}"
    if head.slope is not None and (not hidden or head.activation not in SLOPED):
        yield "head.slope has an effect only with head.activation leaky_relu or prelu"
    if len(head.dropout) not in (1, len(head.layers) + 1):
        yield (
            f"head.dropout has {len(head.dropout)} rates for {len(head.layers) + 1} new layers "
            "(the classifier is one): give one rate, or one for each"
        )
    if head.dropout_kind == "alpha":
        if not selu_features and (not hidden or head.activation != "selu"):
            yield (
                "head.dropout_kind alpha needs SELU before it: hidden layers with head.activation "
                "selu, or --backbone mlp --activation selu"
            )
        elif not any(head.dropout):
            yield "head.dropout_kind has no effect with head.dropout 0"


def scratch_problems(backbone: BackboneOptions) -> Iterator[str]:
    """Yield what is wrong with the options of a network from scratch."""
    if backbone.slope is not None and backbone.activation not in SLOPED:
        yield "backbone.slope has an effect only with backbone.activation leaky_relu or prelu"
    if backbone.dropout_kind == "alpha" and backbone.activation != "selu":
        yield "backbone.dropout_kind alpha needs backbone.activation selu"
    if backbone.dropout_kind == "spatial" and backbone.name != "cnn":
        yield f"backbone.dropout_kind spatial needs feature maps: {backbone.name} has none"
    if backbone.dropout_kind != "plain" and not backbone.dropout:
        yield "backbone.dropout_kind has no effect without backbone.dropout"
    if backbone.drop_path:
        yield "backbone.drop_path is for timm models; here choose backbone.dropout"
    if backbone.pooling is not None and backbone.name == "mlp":
        yield "backbone.pooling has no effect: an mlp has no feature maps to pool"
    if backbone.skip and backbone.depth == 1:
        yield "backbone.skip has no effect with one layer: connections begin above the first"
    if backbone.drop_top_blocks:
        yield "backbone.drop_top_blocks is for timm models; here choose backbone.depth"
    if backbone.replace_activations is not None:
        yield "backbone.replace_activations is for timm models; here choose backbone.activation"


def timm_problems(backbone: BackboneOptions) -> Iterator[str]:
    """Yield the options that only networks from scratch have, and what auto cannot choose by."""
    if backbone.name == AUTO and (backbone.weights is not None or backbone.has_random_blocks):
        yield (
            "backbone.name auto chooses by each backbone's own pretrained weights: name one beside "
            "--weights, --no-pretrained or --reuse-blocks"
        )
    sloped = backbone.replace_activations in SLOPED
    for name in ONLY_FROM_SCRATCH:
        if name == "slope" and sloped:
            continue
        if getattr(backbone, name) != getattr(BackboneOptions(), name):
            yield (
                f"backbone.{name} belongs to the networks from scratch, --backbone mlp or cnn; "
                f"{backbone.name} has its own"
            )
