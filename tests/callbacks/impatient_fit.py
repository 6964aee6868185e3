"""``megalit fit`` whose ranks wait a second for what others have written; started by test_ranks_agree.py.

python impatient_fit.py ARGUMENTS
"""

import sys

from megalit import cli
from megalit.callbacks import checkpoint

checkpoint._PATIENCE = 1.0

if __name__ == "__main__":
    cli.main(sys.argv[1:])
