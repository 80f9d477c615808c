"""The `model_type` in the config.json of the folders that we write, and the subfolder of a graft for its layer."""

LAYER = "surgeon_donor"
GRAFT = "surgeon_graft"
# In a graft's folder: the layer artifact of a frozen donor.
DONOR_FOLDER = "donor"
# The donor's tokenizer next to the host's, in a graft whose donor reads tokens of its own.
DONOR_TOKENIZER_FILE = "donor_tokenizer.json"

# The record in the folder of an assembled model. The digests of DeepSeek-V3's 91,991 tensors take 13 MB.
ASSEMBLY_FILE = "assembly.yaml"
MAX_ASSEMBLY_CHARACTERS = 50_000_000
