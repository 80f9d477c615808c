from .measure import Workload as Workload
from .profile import GraftProfile as GraftProfile
from .profile import profile_graft as profile_graft
