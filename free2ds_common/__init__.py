"""What two or more stages share. Importing it pulls in no torch, faiss or kfp."""

__version__ = "0.1.0"
