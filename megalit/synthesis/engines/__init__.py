"""Engines: who completes a recipe's requests."""

from megalit.synthesis.engines.base import Engine, EngineError, TooLongError
from megalit.synthesis.engines.openai_server import OpenAI
from megalit.synthesis.engines.scripted import Scripted
from megalit.synthesis.engines.transformers import Transformers
from megalit.synthesis.engines.vllm import Vllm

__all__ = ["Engine", "EngineError", "OpenAI", "Scripted", "TooLongError", "Transformers", "Vllm"]
