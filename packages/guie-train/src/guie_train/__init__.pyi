from .feature_store import FeatureStore as FeatureStore
from .fitting import Fit as Fit
from .fitting import Training as Training
from .runner import train as train
from .stage import Stage as Stage
from .stage import Workspace as Workspace
