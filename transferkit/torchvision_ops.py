"""The former name of `transferkit.timm_import`, which scripts may still import before timm."""

import transferkit.timm_import  # noqa: F401
