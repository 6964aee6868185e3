"""Recipes: how generations are made. A new one is a module here."""

from megalit.synthesis.recipes.critique_and_revise import CritiqueAndRevise
from megalit.synthesis.recipes.latent_thoughts import LatentThoughts
from megalit.synthesis.recipes.rephrase import Rephrase
from megalit.synthesis.recipes.token_noise import TokenNoise
from megalit.synthesis.recipes.unconditional import Unconditional

__all__ = ["CritiqueAndRevise", "LatentThoughts", "Rephrase", "TokenNoise", "Unconditional"]
