from .config import SurgeonDonorConfig as SurgeonDonorConfig
from .layer import DonorLayer as DonorLayer
from .stack import DonorStack as DonorStack
