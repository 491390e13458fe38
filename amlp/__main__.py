from __future__ import annotations

import sys

from amlp.cli import main

sys.exit(main())
