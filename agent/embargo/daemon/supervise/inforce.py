"""What is in force: configuration, surroundings and generation. A reload replaces all three together."""

from dataclasses import dataclass

from embargo.config import Config
from embargo.daemon.resolve.orders import Settings
from embargo.daemon.supervise import surroundings
from embargo.daemon.supervise.generations import Generation
from embargo.daemon.supervise.surroundings import Surroundings


@dataclass(slots=True)
class InForce:
    """Shared by the parts of the supervisor. Only `reload` changes it, and only as a whole."""

    settings: Config
    around: Surroundings
    generation: Generation | None = None  # None until the first one is in force

    def for_resolver(self) -> tuple[Generation, Settings]:
        """The generation and the settings that a resolver is started with."""
        assert self.generation is not None
        return self.generation, self.resolver_settings(self.generation, self.around)

    @staticmethod
    def resolver_settings(generation: Generation, around: Surroundings) -> Settings:
        """The settings for resolvers that follow from a generation and the surroundings."""
        return surroundings.resolver_settings(generation.settings, around, generation.report)
