"""Uploads, which are a part of `hub`, under the name of the package whose results they upload."""

from layer_surgeon.hub.push import PushResult, push_graft

__all__ = ["PushResult", "push_graft"]
