"""What is in force: configuration, surroundings and generation. A reload replaces all three."""

from dataclasses import dataclass

from embargo.config import Config
from embargo.daemon.resolve.orders import Settings
from embargo.daemon.supervise import surroundings
from embargo.daemon.supervise.generations import Generation
from embargo.daemon.supervise.surroundings import Surroundings


@dataclass(slots=True)
class InForce:
    """The supervisor's parts share one; only the reload changes it, and never half."""

    settings: Config
    around: Surroundings
    generation: Generation | None = None  # None until the first one is in force

    def for_resolver(self) -> tuple[Generation, Settings]:
        """What a resolver is started with."""
        assert self.generation is not None
        return self.generation, self.resolver_settings(self.generation, self.around)

    @staticmethod
    def resolver_settings(generation: Generation, around: Surroundings) -> Settings:
        return surroundings.resolver_settings(generation.settings, around, generation.report)
