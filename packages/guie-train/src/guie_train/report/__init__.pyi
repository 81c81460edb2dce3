from .page import Export as Export
from .page import Images as Images
from .page import Report as Report
from .page import StageLine as StageLine
from .page import System as System
from .page import render as render
