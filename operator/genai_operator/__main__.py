"""`python -m genai_operator`: see `manager.start`. README.md lists the variables."""

from __future__ import annotations

import sys

from genai_operator.manager.start import main

if __name__ == "__main__":
    sys.exit(main())
