"""Decides whether, how and where a run goes to W&B, as W&B's own client would. Asks no server."""

import configparser
import netrc
import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlparse

from chatbot.errors import one_of
from chatbot.safe_text import safe

MODES = ("auto", "online", "offline", "off")
PROJECT = "latency-matrix"
LONGEST_MESSAGE = 1 << 20  # bytes, between the driver and the process that sends the run
SERVER = "https://api.wandb.ai"
NO = ("", "0", "false", "no", "off")


def resolve_mode(asked: str) -> str:
    """``online``, ``offline`` or ``off``; ``auto`` follows the environment and W&B's settings, else a key is online.

    ``WANDB_DISABLED``, ``WANDB_MODE`` and what ``wandb disabled`` or ``wandb offline`` wrote take precedence so.

    Raises:
        UsageError: an unknown mode.
    """
    mode = asked.lower()
    if mode not in MODES:
        raise one_of("wandb mode", asked, MODES)
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_DISABLED", "").strip().lower() not in NO:
        return "off"
    if said := os.environ.get("WANDB_MODE", "").strip().lower():
        return {"online": "online", "offline": "offline", "dryrun": "offline"}.get(said, "off")
    written = _setting("mode").lower()
    if written == "disabled":
        return "off"
    return "online" if _has_key() and written not in ("offline", "dryrun") else "offline"


def destination() -> str:
    """Where an upload goes and what keeps it from going, in one line."""
    entity = os.environ.get("WANDB_ENTITY") or _setting("entity") or "the key's own entity"
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    return safe(f"W&B: online, project {project} of {entity} at {_host()}; --wandb off keeps the run here")


def _host() -> str:
    return urlparse(os.environ.get("WANDB_BASE_URL") or _setting("base_url") or SERVER).hostname or ""


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(_host()) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _setting(name: str) -> str:
    """The value in W&B's settings file of the current folder, else in the user's."""
    here = Path(os.environ.get("WANDB_DIR") or ".")
    own = Path(os.environ.get("WANDB_CONFIG_DIR") or os.path.expanduser("~/.config/wandb"))
    for place in (here / ".wandb", here / "wandb", own):
        found = configparser.ConfigParser(interpolation=None)
        with suppress(configparser.Error, OSError, UnicodeDecodeError):
            found.read(place / "settings", encoding="utf-8")
            if value := found.get("default", name, fallback="").strip():
                return value
    return ""
