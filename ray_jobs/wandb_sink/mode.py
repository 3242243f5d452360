"""Whether and how a run goes to W&B."""

import netrc
import os
from urllib.parse import urlparse

from chatbot.errors import one_of

MODES = ("auto", "online", "offline", "off")


def resolve_mode(asked: str) -> str:
    """``online``, ``offline`` or ``off``; ``auto`` follows WANDB_MODE, else is online if there is a key.

    Raises:
        UsageError: an unknown mode.
    """
    if asked not in MODES:
        raise one_of("wandb mode", asked, MODES)
    if asked != "auto":
        return asked
    mode = os.environ.get("WANDB_MODE", "")
    if mode:
        return {"online": "online", "offline": "offline", "dryrun": "offline"}.get(mode, "off")
    return "online" if _has_key() else "offline"


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
