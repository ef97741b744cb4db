"""Fixed networks, measured always on the same terms."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # Read when torch is imported: no line for every profile.
