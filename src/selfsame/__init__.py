"""One picture in, the selfsame person, thing or texture in a new picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfsame.studio.request import Request
    from selfsame.studio.studio import Studio, load
    from selfsame.values.identity import Identity

__version__ = "0.1.0"
__all__ = ["Identity", "Request", "Studio", "__version__", "load"]

_HOMES = {"load": "selfsame.studio.studio", "Studio": "selfsame.studio.studio", "Request": "selfsame.studio.request", "Identity": "selfsame.values.identity"}


def __getattr__(name: str) -> Any:  # importing the package stays cheap: torch loads with the first use
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'selfsame' has no attribute {name!r}")
