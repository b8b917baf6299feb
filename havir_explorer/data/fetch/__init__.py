"""The Natural Scenes Dataset from its public bucket into a folder: listed first, resumable at any byte, checked against the bucket.

The way: an ``Order`` becomes a plan of keys (keys.py); the ``Bucket`` (bucket.py) and the folder (folder.py) are looked at for what is there
(survey.py); what is lacking comes file by file (run.py, transfer.py) and is checked (verify.py), pictures singly out of the brick (pictures.py).
"""

from __future__ import annotations

from havir_explorer.data.fetch.bucket import Bucket
from havir_explorer.data.fetch.folder import TERMS, accept_terms, make, terms_accepted
from havir_explorer.data.fetch.keys import SESSIONS, Order
from havir_explorer.data.fetch.run import Report, fetch
from havir_explorer.data.fetch.survey import Survey, survey

__all__ = ["SESSIONS", "TERMS", "Bucket", "Order", "Report", "Survey", "accept_terms", "fetch", "make", "survey", "terms_accepted"]
