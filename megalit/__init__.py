"""megalit: data-efficient language-model pre-training on synthetic megadocs.

The way through the package, top to bottom, which is also the direction of imports::

    corpus -> synthesis -> streams -> modeling -> evaluation -> scaling -> callbacks -> tuning -> launch -> cli

Nothing is imported here, so that ``import megalit`` and ``megalit --help`` stay instant.
"""

__version__ = "0.1.0"
