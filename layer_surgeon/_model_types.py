"""The `model_type` in the config.json of the folders that we write, and the subfolder of a graft for its layer."""

LAYER = "surgeon_donor"
GRAFT = "surgeon_graft"
# In a graft's folder: the layer artifact of a frozen donor.
DONOR_FOLDER = "donor"
