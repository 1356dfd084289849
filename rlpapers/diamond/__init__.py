"DIAMOND: diffusion world models (arXiv 2405.12399)."

def from_pretrained(game_or_path):
    "The authors' agent of an Atari game, from the Hugging Face hub or a local file; see `rlpapers.diamond.pretrained`."
    from .pretrained import from_pretrained as load
    return load(game_or_path)
