"""Triton's HTTP routes (KServe v2 and the generate extension): ``/v2/models/{model}/infer`` and the rest."""
