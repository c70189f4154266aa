"""What a run is told. Imports no torch."""

from gift_vit.config.compose import compose_config
from gift_vit.config.loader import load_config
from gift_vit.config.run_config import RunConfig

__all__ = ["RunConfig", "compose_config", "load_config"]
