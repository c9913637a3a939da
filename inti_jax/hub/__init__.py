"""Take weights and trained models from the Hugging Face Hub, by their names.

- `names.py`: names as users write them
- `published.py`: open_clip's names and their repositories
- `repository.py`: a repository's files, downloaded once and compared with their hashes
"""
